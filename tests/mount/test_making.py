"""What a user is told while a dataset is made in a real mount, and what is left out of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.staged_datasets import status, wait_until_gone

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
