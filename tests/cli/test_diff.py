"""What `dserverfs diff` says of a directory, without a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from dserverfs.base.errors import UsageError
from dserverfs.cli import diff
from dserverfs.writing.staging.survey import survey
from tests.support.dtool_datasets import make_dataset


@pytest.mark.parametrize(("limit", "refused"), [(None, 0), (3, 0), (2, 1), (0, 2)])
def test_items_that_the_server_cannot_have_stored_are_named(
    tmp_path: Path, limit: int | None, refused: int
) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"1")

    found = list(diff._refused({"max_item_bytes": limit}, survey(tmp_path), None))

    assert len(found) == refused
    assert all(f": has more than {limit} bytes" in reason for reason in found)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dtool", '{"type": "dataset", "uuid": "none"}', ".dtool/dtool: 'none' is not a uuid"),
        ("manifest.json", '{"hash_function": "sha1"}', "its hash function 'sha1' is not MD5"),
    ],
)
def test_metadata_of_a_copy_that_cannot_be_used_are_named(
    tmp_path: Path, file: str, content: str, said: str
) -> None:
    directory = make_dataset(tmp_path, "copied", {"a": b"1"})
    (directory / ".dtool" / file).write_text(content)

    assert list(diff._refused({"max_item_bytes": None}, survey(directory), None)) == [said]


def test_dataset_that_was_frozen_meanwhile_is_told(tmp_path: Path) -> None:
    staged = {"name": "gone", "directory": str(tmp_path / "gone"), "exclude": []}

    with pytest.raises(UsageError, match="gone: changed while it was read, or is not staged any"):
        diff._surveyed(staged, None)
