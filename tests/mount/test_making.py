"""What a user is told while a dataset is made in a real mount, and what is left out of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dtoolcore
import pytest
from ruamel.yaml import YAML

from dserverfs.base import disk_space
from dserverfs.base.errors import UsageError
from dserverfs.base.model import identifier_of
from dserverfs.cli import readme
from dserverfs.cli.main import main
from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.staged_datasets import freeze, status, wait_until_gone

pytest_plugins = ["tests.support.mount_fixtures"]


@pytest.fixture
def dataset(base: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new dataset, named like the test."""
    path = base / request.node.name.replace("[", "-").replace("]", "")[:70]
    path.mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Commands:
    """The command line, in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def run(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        """Return what a command says on standard output, and as errors."""
        self._capture.readouterr()
        assert main([str(each) for each in arguments]) == status
        return self._capture.readouterr()

    def json(self, *arguments: object, status: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json", status=status)[0])
        return found


@pytest.fixture
def commands(base: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(capsys)


def test_leavings_are_told_and_kept_by_a_mount(
    dataset: Path, commands: Commands, current_user: Account
) -> None:
    (dataset / ".DS_Store").write_text("view")
    (dataset / "data").mkdir()  # no link yet, for there is no item
    (dataset / "data/item").write_text("item")
    (dataset / "data/.ipynb_checkpoints").mkdir()
    (dataset / "data/.ipynb_checkpoints/x").write_text("copy")
    before = commands.json("status", dataset)

    out, _ = commands.run("freeze", dataset)

    assert (before["number_of_items"], before["excluded"]) == (1, ".ipynb_checkpoints/, .DS_Store")
    (note,) = (
        line for line in out.splitlines() if "note: left out, as DSERVER_EXCLUDE says" in line
    )
    kept = Path(note.partition("kept in ")[2].rpartition(": ")[0])
    wait_until_gone(Path(before["directory"]))
    assert [path.name for path in (dataset / "data").iterdir()] == ["item"]
    assert (kept / ".DS_Store").read_text() == "view"
    assert (kept / "data/.ipynb_checkpoints/x").read_text() == "copy"
    (listed,) = (one for one in status(current_user)["kept"] if one["directory"] == str(kept))
    assert (listed["number_of_files"], listed["size_in_bytes"]) == (2, 8)
    shutil.rmtree(kept)


def test_diff_shows_what_the_freeze_then_makes(dataset: Path, commands: Commands) -> None:
    (dataset / "README.yml").write_text("description: mine\n")
    (dataset / "sub").mkdir()
    for name in ("a", "sub/b", ".DS_Store", "ünïcödé \x1b[31m"):
        (dataset / name).write_text(name)
    (dataset / "a").chmod(0o755)
    (dataset / "empty").mkdir()
    with pytest.raises(PermissionError):
        (dataset / "link").symlink_to("a")

    told, _ = commands.run("diff", dataset, "--hash")
    found = commands.json("diff", dataset, "--hash")
    again = commands.json("diff", dataset)

    assert f"{hashlib.md5(b'sub/b').hexdigest()}         5 B  sub/b\n" in told
    assert "\nREADME.yml: 18 B\nexcluded: .DS_Store\n" in told
    assert "empty directories: empty; executable bits: a\n" in told
    assert "\x1b" not in told
    assert all("hash" not in item for item in again.pop("items"))
    items = {item["relpath"]: item for item in found.pop("items")}
    assert found == again
    assert (found["number_of_items"], found["excluded"]) == (3, [".DS_Store"])
    assert (found["empty_directories"], found["executables"]) == (["empty"], ["a"])
    assert [refused["path"] for refused in found["refused"]] == ["link"]
    assert "\nlink was refused (" in told
    assert commands.json("status", dataset)["state"] == "open"
    commands.run("freeze", dataset)
    made = json.loads((dataset / ".dtool/manifest.json").read_text())["items"].values()
    assert {(one["relpath"], one["size_in_bytes"], one["hash"]) for one in made} == {
        (relpath, one["size_in_bytes"], one["hash"]) for relpath, one in items.items()
    }
    assert f"{dataset.name}: is frozen" in commands.run("diff", dataset, status=1)[1]


def test_diff_names_what_keeps_it_from_being_frozen(
    dataset: Path, tmp_path: Path, commands: Commands
) -> None:
    made = make_dataset(tmp_path, "elsewhere", {"a": b"first", "b": b"second", "c": b"third"})
    shutil.copytree(made, dataset, dirs_exist_ok=True)
    assert commands.json("diff", dataset, "--hash")["cannot_be_frozen"] == []
    (dataset / "data/a").write_bytes(b"other")
    (dataset / "data/b").write_bytes(b"longer than that")
    (dataset / "data/c").unlink()
    (dataset / "data/d").write_bytes(b"more")

    unread = commands.json("diff", dataset, status=1)["cannot_be_frozen"]
    read = commands.json("diff", dataset, "--hash", status=1)["cannot_be_frozen"]
    told, _ = commands.run("diff", dataset, status=1)

    rest = [
        "b: is not what the manifest says",
        "c: is in the manifest, but not there",
        "d: is there, but not in the manifest",
    ]
    assert sorted(unread) == rest
    assert sorted(read) == ["a: is not what the manifest says", *rest]
    assert told.count("cannot be frozen: ") == 3


def test_diff_of_what_can_be_read_both_ways_says_so(dataset: Path, commands: Commands) -> None:
    (dataset / "data").mkdir()
    (dataset / "data/item").write_text("item")
    (dataset / "beside").write_text("beside")

    out, said = commands.run("diff", dataset, status=1)
    as_dtool = commands.json("diff", dataset, "--layout", "dtool")

    assert out == ""
    assert "cannot be frozen: data/ is there beside beside: say what it is" in said
    assert [item["relpath"] for item in as_dtool["items"]] == ["item"]
    assert as_dtool["left_out"] == ["beside"]
    assert commands.json("diff", dataset, "--layout", "items")["number_of_items"] == 2


def test_message_is_the_description_of_the_dataset(dataset: Path, commands: Commands) -> None:
    (dataset / "item").write_text("item")

    commands.run("freeze", dataset, "--message", "first: run")
    again = commands.run("freeze", dataset, "--message", "second", status=1)

    assert (dataset / "README.yml").read_text() == '---\ndescription: "first: run"\n'
    assert f"{dataset.name}: is frozen" in again[1]


def test_message_beside_a_readme_freezes_nothing(dataset: Path, commands: Commands) -> None:
    (dataset / "README.yml").write_text("description: mine\n")

    out, said = commands.run("freeze", dataset, "--message", "other", status=1)

    assert out == ""
    assert "README.yml: is there, and stays as it is" in said
    assert (dataset / "README.yml").read_text() == "description: mine\n"
    assert commands.json("status", dataset)["state"] == "open"


@pytest.fixture(scope="module")
def parent(base: Path, current_user: Account) -> Path:
    """A frozen dataset of two items."""
    path = base / "parent"
    (path / "sub").mkdir(parents=True)
    (path / "same").write_text("same")
    (path / "sub/large").write_bytes(b"large" * 1000)
    os.utime(path / "same", ns=(0, 1_500_000_000_250_000_000))
    freeze(current_user, path)
    return path


def test_derived_dataset_has_the_items_and_says_of_which_dataset(
    base: Path, parent: Path, commands: Commands
) -> None:
    of = commands.json("status", parent)
    derived = base / "derived-by-command"

    commands.run("derive", of["uri"], derived)

    assert commands.json("status", derived)["armed"] is False
    assert (derived / "data/sub/large").read_bytes() == b"large" * 1000
    (derived / "data/sub/large").write_text("changed")
    commands.run("freeze", derived, "--message", "changed one")
    dataset = dtoolcore.DataSet.from_uri(str(derived))
    before = dtoolcore.DataSet.from_uri(str(parent))
    same = identifier_of("same")
    assert dataset.item_properties(same) == before.item_properties(same)
    assert (derived / "data/sub/large").read_text() == "changed"
    assert {name: dataset.get_annotation(name) for name in dataset.list_annotation_names()} == {
        f"source_dataset_{key}": of[key] for key in ("name", "uri", "uuid")
    }
    assert YAML(typ="safe").load(dataset.get_readme_content()) == {
        "derived_from": of["uri"],
        "description": "changed one",
    }


def test_dataset_that_is_derived_by_half_is_told_and_not_frozen_by_itself(
    base: Path, parent: Path, commands: Commands, current_user: Account
) -> None:
    derived = base / "derived-by-half"
    command = 'ulimit -f 2; exec "$@"'  # KiB, of a file

    done = current_user.run(
        *("sh", "-c", command, "sh", current_user.python, "-m", "dserverfs"),
        *("derive", parent, derived),
    )

    assert done.returncode == 1
    assert "bad: sub/large: " in done.stdout
    assert "File too large\n1 of 2 items could not be copied\n" in done.stdout
    assert f"{derived}: is incomplete: dserverfs discard {derived}" in done.stdout
    assert commands.json("status", derived)["armed"] is False
    commands.run("discard", derived, "--yes")


def test_what_cannot_be_derived_is_refused_and_makes_nothing(
    base: Path, parent: Path, dataset: Path, tmp_path: Path, commands: Commands
) -> None:
    uuid = commands.json("status", parent)["uuid"]
    for source, target, said in (
        (parent, parent, "parent: File exists"),
        (parent / "data", base / "new", "parent/data: is not a frozen dataset"),
        (dataset, base / "new", f"{dataset.name}: is not a frozen dataset"),
        (base, base / "new", "is not a frozen dataset"),
        (tmp_path, base / "new", "is not in a mount of dserverfs"),
        (parent, tmp_path / "new", "is not in a mount of dserverfs"),
        (parent, dataset / "new", "new: is not where datasets are"),
        (parent, base / ".new", ".new: Invalid argument"),
        (f"dserver://elsewhere/s3/bucket/{uuid}", base / "new", "is not a dataset in"),
        ("dserver://elsewhere/s3/bucket", base / "new", "is not a dataset in"),
    ):
        assert said in commands.run("derive", source, target, status=1)[1]
    assert not (base / "new").exists()
    assert os.listdir(dataset) == os.listdir(tmp_path) == []


def test_dataset_that_has_no_room_is_not_derived(
    base: Path, parent: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_space, "free_in_bytes", lambda directory: 5003)

    _, said = commands.run("derive", parent, base / "no-room", status=1)

    assert "has 4.9 KiB, and the disk for new datasets has 4.9 KiB free" in said
    assert not (base / "no-room").exists()


def test_dataset_waits_for_a_command_while_its_readme_is_edited(
    dataset: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "item").write_text("item")
    armed = []

    def leave(path: Path) -> None:
        armed.append(commands.json("status", dataset)["armed"])
        raise UsageError("the editor ended with status 1")

    monkeypatch.setattr(readme, "_run_editor", leave)

    commands.run("freeze", "--edit", dataset, status=1)

    assert armed == [False]
    assert commands.json("status", dataset)["armed"] is True
