"""The metadata of a dataset that is a directory of dtool's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dserverfs.base import dtool_layout
from dserverfs.base.errors import UsageError
from dserverfs.base.hashes import MD5
from dserverfs.base.model import identifier_of
from tests.support.dtool_datasets import SIZES, make_varied_dataset


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_varied_dataset(tmp_path, "varied")


def test_paths_are_those_that_dtool_makes(directory: Path) -> None:
    assert {path.name for path in directory.iterdir()} == dtool_layout.AT_THE_TOP
    for path in (
        dtool_layout.ADMIN_METADATA,
        dtool_layout.MANIFEST,
        dtool_layout.STRUCTURE,
        dtool_layout.DTOOL_README,
        dtool_layout.OVERLAYS,
        dtool_layout.ANNOTATIONS,
        dtool_layout.TAGS,
    ):
        assert (directory / path).exists()


def test_frozen_dataset_is_read_with_its_items(directory: Path) -> None:
    admin, frozen = dtool_layout.read_frozen(directory)

    assert admin["name"] == "varied"
    assert frozen.hash_function == MD5
    assert {item.relpath: item.size_in_bytes for item in frozen.items.values()} == SIZES
    assert frozen.timestamps.keys() == {identifier_of(relpath) for relpath in SIZES}


@pytest.mark.parametrize("path", [dtool_layout.ADMIN_METADATA, dtool_layout.MANIFEST])
@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_directory_without_its_metadata_is_no_frozen_dataset(
    directory: Path, path: str, text: str | None
) -> None:
    (directory / path).unlink()
    if text is not None:
        (directory / path).write_text(text)

    with pytest.raises(UsageError, match="not a frozen dataset"):
        dtool_layout.read_frozen(directory)


def test_proto_dataset_is_not_frozen(directory: Path) -> None:
    (directory / dtool_layout.ADMIN_METADATA).write_text(json.dumps({"type": "protodataset"}))

    with pytest.raises(UsageError, match="is not frozen"):
        dtool_layout.read_frozen(directory)


def test_tags_and_json_files_are_read_by_name_and_none_where_there_is_no_directory(
    directory: Path, tmp_path: Path
) -> None:
    assert dtool_layout.read_tags(directory) == ["testing"]
    assert list(dtool_layout.read_json_files(directory / dtool_layout.ANNOTATIONS)) == ["answer"]
    assert dtool_layout.read_tags(tmp_path) == []
    assert dtool_layout.read_json_files(tmp_path / "none") == {}


def test_two_files_that_would_be_one_annotation_are_named(directory: Path) -> None:
    (directory / dtool_layout.ANNOTATIONS / "answer").write_text("43")

    with pytest.raises(UsageError, match=r"annotations/answer and annotations/answer\.json: "):
        dtool_layout.read_json_files(directory / dtool_layout.ANNOTATIONS)


def test_file_among_the_annotations_that_is_no_json_is_named(directory: Path) -> None:
    (directory / dtool_layout.ANNOTATIONS / "notes.txt").write_text("no JSON")

    with pytest.raises(UsageError, match=r"annotations/notes\.txt: cannot be read"):
        dtool_layout.read_json_files(directory / dtool_layout.ANNOTATIONS)
