"""What a copy lacks because no dataset can hold it: told by `status`, and by the freeze."""

from __future__ import annotations

from pathlib import Path

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
    frozen = current_user.dserverfs("freeze", dataset)

    assert found["refused"] == [{"path": "pw", "what": "symbolic link"}]
    assert f"note: {PW}\n" in said
    assert f"    {PW}\n" in listed
    assert frozen.returncode == 0, frozen.stderr
    assert f"note: {PW}\n" in frozen.stdout
    assert sorted(path.name for path in (dataset / "data").iterdir()) == ["file", "other"]


def test_discard_asks_on_a_terminal_and_nowhere_else(base: Path, current_user: Account) -> None:
    dataset = base / "asked-about"
    command = f"{current_user.python} -m dserverfs discard {dataset}"

    def on_terminal(answer: str) -> str:
        script = f"echo {answer} | script -qec '{command}' /dev/null"
        return current_user.run("sh", "-c", script).stdout

    dataset.mkdir()
    (dataset / "file").write_text("content")
    said = on_terminal("n")
    assert "Delete asked-about for good, with 1 items, 7 B, which no server has? [y/N]" in said
    assert "nothing was discarded" in said
    assert dataset.exists()
    assert "discarded: asked-about" in on_terminal("y")
    assert not dataset.exists()

    dataset.mkdir()
    assert current_user.dserverfs("discard", dataset).returncode == 0
    assert not dataset.exists()
