"""What a user is told while a dataset is made in a real mount, and what is left out of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


def test_leavings_are_told_and_kept_by_a_mount(dataset: Path, current_user: Account) -> None:
    (dataset / ".DS_Store").write_text("view")
    (dataset / "data").mkdir()  # no link yet, for there is no item
    (dataset / "data/item").write_text("item")
    (dataset / "data/.ipynb_checkpoints").mkdir()
    (dataset / "data/.ipynb_checkpoints/x").write_text("copy")
    before = status(current_user, dataset)

    done = current_user.dserverfs("freeze", dataset)

    assert (before["number_of_items"], before["excluded"]) == (1, ".ipynb_checkpoints/, .DS_Store")
    assert done.returncode == 0, done.stderr
    (note,) = (
        line for line in done.stdout.splitlines() if "note: DSERVER_EXCLUDE left out" in line
    )
    kept = Path(note.partition("kept in ")[2].rpartition(": ")[0])
    wait_until_gone(Path(before["directory"]))
    assert [path.name for path in (dataset / "data").iterdir()] == ["item"]
    assert (kept / ".DS_Store").read_text() == "view"
    assert (kept / "data/.ipynb_checkpoints/x").read_text() == "copy"
    (listed,) = (one for one in status(current_user)["kept"] if one["directory"] == str(kept))
    assert (listed["number_of_files"], listed["size_in_bytes"]) == (2, 8)
    shutil.rmtree(kept)


def diff(account: Account, path: Path, *options: str, status: int = 0) -> dict[str, Any]:
    done = account.dserverfs("diff", path, "--json", *options)
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_diff_shows_what_the_freeze_then_makes(dataset: Path, current_user: Account) -> None:
    (dataset / "README.yml").write_text("description: mine\n")
    (dataset / "sub").mkdir()
    for name in ("a", "sub/b", ".DS_Store", "ünïcödé \x1b[31m"):
        (dataset / name).write_text(name)
    (dataset / "a").chmod(0o755)
    (dataset / "empty").mkdir()

    told = current_user.dserverfs("diff", dataset, "--hash")
    found = diff(current_user, dataset, "--hash")
    again = diff(current_user, dataset)

    assert told.returncode == 0, told.stderr
    assert f"{hashlib.md5(b'sub/b').hexdigest()}         5 B  sub/b\n" in told.stdout
    assert "\nREADME.yml: 18 B\nexcluded: .DS_Store\n" in told.stdout
    assert "empty directories: empty; executable bits: a\n" in told.stdout
    assert "\x1b" not in told.stdout
    assert all("hash" not in item for item in again.pop("items"))
    items = {item["relpath"]: item for item in found.pop("items")}
    assert found == again
    assert (found["number_of_items"], found["excluded"]) == (3, [".DS_Store"])
    assert (found["empty_directories"], found["executables"]) == (["empty"], ["a"])
    assert status(current_user, dataset)["state"] == "open"
    freeze(current_user, dataset)
    made = json.loads((dataset / ".dtool/manifest.json").read_text())["items"].values()
    assert {(one["relpath"], one["size_in_bytes"], one["hash"]) for one in made} == {
        (relpath, one["size_in_bytes"], one["hash"]) for relpath, one in items.items()
    }
    refused = current_user.dserverfs("diff", dataset)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{dataset.name}: is frozen" in refused.stderr


def test_diff_names_what_keeps_it_from_being_frozen(
    dataset: Path, tmp_path: Path, current_user: Account
) -> None:
    made = make_dataset(tmp_path, "elsewhere", {"a": b"first", "b": b"second", "c": b"third"})
    shutil.copytree(made, dataset, dirs_exist_ok=True)
    assert diff(current_user, dataset, "--hash")["cannot_be_frozen"] == []
    (dataset / "data/a").write_bytes(b"other")
    (dataset / "data/b").write_bytes(b"longer than that")
    (dataset / "data/c").unlink()
    (dataset / "data/d").write_bytes(b"more")

    unread = diff(current_user, dataset, status=1)["cannot_be_frozen"]
    read = diff(current_user, dataset, "--hash", status=1)["cannot_be_frozen"]
    told = current_user.dserverfs("diff", dataset)

    rest = [
        "b: is not what the manifest says",
        "c: is in the manifest, but not there",
        "d: is there, but not in the manifest",
    ]
    assert sorted(unread) == rest
    assert sorted(read) == ["a: is not what the manifest says", *rest]
    assert told.returncode == 1
    assert told.stdout.count("cannot be frozen: ") == 3


def test_diff_of_what_can_be_read_both_ways_says_so(dataset: Path, current_user: Account) -> None:
    (dataset / "data").mkdir()
    (dataset / "data/item").write_text("item")
    (dataset / "beside").write_text("beside")

    done = current_user.dserverfs("diff", dataset)
    as_dtool = diff(current_user, dataset, "--layout", "dtool")

    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be frozen: data/ is there beside beside: say what it is" in done.stderr
    assert [item["relpath"] for item in as_dtool["items"]] == ["item"]
    assert as_dtool["left_out"] == ["beside"]
    assert diff(current_user, dataset, "--layout", "items")["number_of_items"] == 2


def test_message_is_the_description_of_the_dataset(dataset: Path, current_user: Account) -> None:
    (dataset / "item").write_text("item")

    freeze(current_user, dataset, "--message", "first: run")
    again = current_user.dserverfs("freeze", dataset, "--message", "second")

    assert (dataset / "README.yml").read_text() == '---\ndescription: "first: run"\n'
    assert again.returncode == 1
    assert f"{dataset.name}: is frozen" in again.stderr


def test_message_beside_a_readme_freezes_nothing(dataset: Path, current_user: Account) -> None:
    (dataset / "README.yml").write_text("description: mine\n")

    done = current_user.dserverfs("freeze", dataset, "--message", "other")

    assert (done.returncode, done.stdout) == (1, "")
    assert "README.yml: is there, and stays as it is" in done.stderr
    assert (dataset / "README.yml").read_text() == "description: mine\n"
    assert status(current_user, dataset)["state"] == "open"
