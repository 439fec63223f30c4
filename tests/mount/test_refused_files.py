"""What a copy lacks because no dataset can hold it: told by `status`, and by the freeze."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.progress import Progress
from dserverfs.cli import mounted as cli_mounted
from dserverfs.cli.main import EXIT_INTERRUPTED, main
from tests.support.accounts import Account
from tests.support.staged_datasets import status

pytest_plugins = ["tests.support.mount_fixtures"]

PW = "pw was refused (symbolic link) and is not in the dataset; cp -rL copies what links point to"


def test_what_was_refused_is_told_until_it_is_there(
    base: Path, current_user: Account, tmp_path: Path
) -> None:
    source = tmp_path / "refused-and-told"
    source.mkdir()
    (source / "file").write_text("content")
    (source / "pw").symlink_to("file")
    (source / "other").symlink_to("file")
    copied = current_user.run("cp", "-r", source, base)
    dataset = base / source.name
    assert copied.returncode == 1
    (dataset / "other").write_text("a file in its place")

    found = status(current_user, dataset)
    said = current_user.dserverfs("status", dataset).stdout
    listed = current_user.dserverfs("status").stdout
    shown = current_user.dserverfs("diff", dataset)
    frozen = current_user.dserverfs("freeze", dataset)

    assert found["refused"] == [{"path": "pw", "what": "symbolic link"}]
    assert f"note: {PW}\n" in said
    assert f"    {PW}\n" in listed
    assert f"{PW}\n" in shown.stdout
    assert frozen.returncode == 0, frozen.stderr
    assert f"note: {PW}\n" in frozen.stdout
    assert sorted(path.name for path in (dataset / "data").iterdir()) == ["file", "other"]


def test_freeze_that_is_interrupted_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(command: str, **arguments: object) -> Iterator[dict[str, Any]]:
        yield {"progress": Progress(1, 2, 0, 1)._asdict(), "phase": "hashing"}
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_mounted, "find", lambda path: SimpleNamespace(ask=interrupted))

    assert main(["freeze", "/lab/my results"]) == EXIT_INTERRUPTED
    assert "goes on with the freeze: dserverfs status '/lab/my results'" in capsys.readouterr().err


def test_discard_asks_on_a_terminal_and_nowhere_else(base: Path, current_user: Account) -> None:
    dataset = base / "asked-about"
    command = f"{current_user.python} -m dserverfs discard {dataset}"

    def on_terminal(answer: str) -> str:
        script = f"echo {answer} | script -qec '{command}' /dev/null"
        return current_user.run("sh", "-c", script).stdout

    dataset.mkdir()
    (dataset / "file").write_text("content")
    said = on_terminal("n")
    assert "Delete asked-about for good, with 1 item, 7 B, which no server has? [y/N]" in said
    assert "nothing was discarded" in said
    assert dataset.exists()
    assert "discarded: asked-about" in on_terminal("y")
    assert not dataset.exists()

    dataset.mkdir()
    assert current_user.dserverfs("discard", dataset).returncode == 0
    assert not dataset.exists()
