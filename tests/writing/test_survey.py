"""Which files of a staged directory are items, in both layouts and in neither."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dserverfs.base.dtool_layout import AT_THE_TOP
from dserverfs.base.errors import CannotHold, NotUTF8, UsageError
from dserverfs.base.excluded import DEFAULT, Excluded
from dserverfs.base.limits import MAX_README_BYTES
from dserverfs.writing.staging.survey import (
    NAMED,
    REMEMBERED,
    Ambiguous,
    Layout,
    Lost,
    StillProto,
    is_item_at_the_top,
    survey,
)
from tests.support.dtool_datasets import make_dataset


def write(root: Path, *relpaths: str) -> None:
    for relpath in relpaths:
        path = root / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(relpath)


def test_every_file_but_the_top_readme_is_an_item(tmp_path: Path) -> None:
    write(tmp_path, "README.yml", "a", "sub/b", "sub/README.yml", "sub/deep/c")

    found = survey(tmp_path)

    assert found.layout is Layout.ITEMS
    assert sorted(found.items) == ["a", "sub/README.yml", "sub/b", "sub/deep/c"]
    assert found.readme == b"README.yml"
    assert found.items["sub/b"].path == tmp_path / "sub/b"
    assert found.size_in_bytes == sum(map(len, found.items))


def test_a_data_directory_holds_the_items(tmp_path: Path) -> None:
    write(tmp_path, "README.yml", "data/a", "data/sub/b", "data/README.yml")

    found = survey(tmp_path)

    assert found.layout is Layout.DTOOL
    assert sorted(found.items) == ["README.yml", "a", "sub/b"]
    assert found.admin_metadata is None


@pytest.mark.parametrize(
    "relpaths",
    [
        ("data/a", "beside"),
        ("data/a", "other/b"),
        (".dtool/dtool", "a"),
        (".dtool/x",),
        (".dtool/x", "data/a", "README.yml-1.5"),
    ],
)
def test_what_can_be_read_both_ways_is_left_to_a_person(
    tmp_path: Path, relpaths: tuple[str, ...]
) -> None:
    write(tmp_path, *relpaths)

    with pytest.raises(Ambiguous, match=r"--layout items\|dtool"):
        survey(tmp_path)


def test_a_person_decides_for_items(tmp_path: Path) -> None:
    write(tmp_path, "data/a", "beside")

    assert sorted(survey(tmp_path, Layout.ITEMS).items) == ["beside", "data/a"]


def test_a_person_decides_for_dtool_and_is_told_what_is_left_over(tmp_path: Path) -> None:
    write(tmp_path, "data/a", "beside", "README.yml")

    found = survey(tmp_path, Layout.DTOOL)

    assert sorted(found.items) == ["a"]
    assert found.left_over == ["beside"]


@pytest.mark.parametrize("data", ["missing", "a file"])
def test_dtools_layout_without_its_directory_is_refused(tmp_path: Path, data: str) -> None:
    write(tmp_path, "a" if data == "missing" else "data")

    with pytest.raises(Ambiguous, match=r"data is a file: .* --layout items$"):
        survey(tmp_path, Layout.DTOOL)
    assert len(survey(tmp_path, Layout.ITEMS).items) == 1


def test_an_empty_directory_has_no_items(tmp_path: Path) -> None:
    found = survey(tmp_path)

    assert len(found.items) == 0
    assert found.losses() is None


def test_names_of_dtools_layout_are_no_items_at_the_top() -> None:
    assert not any(is_item_at_the_top(name) for name in AT_THE_TOP)
    assert is_item_at_the_top("a")


@pytest.mark.parametrize("by_itself", [False, True])
def test_what_dtool_keeps_of_a_readme_leaves_the_layout_dtools(
    tmp_path: Path, by_itself: bool
) -> None:
    directory = make_dataset(tmp_path, "frozen", {"a": b"1"})
    (directory / "README.yml-1700000000.5").write_text("before")

    found = survey(directory, by_itself=by_itself)

    assert (found.layout, sorted(found.items)) == (Layout.DTOOL, ["a"])
    assert found.left_over == ["README.yml-1700000000.5"]


def test_what_is_beside_dtools_layout_is_left_out_by_command_only(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path, "frozen", {"a": b"1"})
    (directory / "notes.txt").write_text("mine")

    assert survey(directory).left_over == ["notes.txt"]
    with pytest.raises(Ambiguous, match=r"notes\.txt"):
        survey(directory, by_itself=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Größe".encode("latin-1"), "no text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "no text in UTF-8"),
        (b"a" * (MAX_README_BYTES + 1), "is larger than"),
        (None, "is a directory"),
    ],
    ids=["latin-1", "binary", "large", "directory"],
)
def test_readme_that_no_server_takes_is_named_before_anything_is_sent(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    write(tmp_path, "a")
    if content is None:
        (tmp_path / "README.yml").mkdir()
    else:
        (tmp_path / "README.yml").write_bytes(content)

    with pytest.raises(UsageError, match=said):
        survey(tmp_path)


def test_largest_readme_is_taken(tmp_path: Path) -> None:
    (tmp_path / "README.yml").write_bytes(b"a" * MAX_README_BYTES)

    assert len(survey(tmp_path).readme) == MAX_README_BYTES


def test_a_missing_readme_is_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path, "a")

    assert survey(tmp_path).readme == b""


def test_a_dataset_frozen_elsewhere_brings_everything(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path, "frozen", {"a": b"1", "sub/b": b"2"})

    found = survey(directory)

    assert found.admin_metadata is not None
    assert found.manifest is not None
    assert found.admin_metadata["name"] == "frozen"
    assert len(found.manifest["items"]) == 2
    assert found.tags == ["testing"]
    assert found.annotations == {"answer": {"value": 42, "text": "ü"}}
    assert set(found.overlays) == {"odd"}


@pytest.mark.parametrize("items", [None, [], "text", {"x": None, "y": {"relpath": ".DS_Store"}}])
def test_manifest_that_is_none_excludes_no_file_of_those_it_names(
    tmp_path: Path, items: object
) -> None:
    """Whether it is a good one is found out later."""
    directory = make_dataset(tmp_path, "frozen", {"a": b"1", ".DS_Store": b"2"})
    (directory / ".dtool/manifest.json").write_text(json.dumps({"items": items}))

    found = survey(directory, excluded=Excluded(DEFAULT))

    assert sorted(found.items) == ([".DS_Store", "a"] if isinstance(items, dict) else ["a"])


def test_what_dtool_has_not_frozen_is_dtools_to_freeze(tmp_path: Path) -> None:
    write(tmp_path, "data/a")
    (tmp_path / ".dtool").mkdir()
    (tmp_path / ".dtool/dtool").write_text(json.dumps({"type": "protodataset"}))

    with pytest.raises(StillProto, match="dtool freeze"):
        survey(tmp_path)


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    write(tmp_path, "data/a", ".dtool/dtool")

    with pytest.raises(UsageError, match="dtool: cannot be read"):
        survey(tmp_path)


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a", "script")
    (tmp_path / "script").chmod(0o755)
    for number in range(7):
        (tmp_path / f"empty/{number}").mkdir(parents=True)

    assert survey(tmp_path).losses() == (
        "not kept in the dataset: empty directories: empty/6, empty/5, empty/4, empty/3, empty/2"
        " and 2 more; executable bits: script"
    )


@pytest.mark.parametrize("count", [1, NAMED, NAMED + 1, REMEMBERED, REMEMBERED + 1])
def test_first_of_what_is_lost_are_named_and_all_are_counted(count: int) -> None:
    lost = Lost()
    for number in range(count):
        lost.add(str(number))

    named = ", ".join(str(number) for number in range(min(count, NAMED)))
    assert str(lost) == named + (f" and {count - NAMED} more" if count > NAMED else "")
    assert len(lost.first) == min(count, REMEMBERED)


@pytest.mark.parametrize(
    ("mode", "is_lost"),
    [(0o644, False), (0o666, False), (0o700, True), (0o610, True), (0o601, True)],
)
def test_each_bit_that_lets_a_program_run_is_lost_and_no_other(
    tmp_path: Path, mode: int, is_lost: bool
) -> None:
    write(tmp_path, "a")
    (tmp_path / "a").chmod(mode)

    assert survey(tmp_path).losses() == (
        "not kept in the dataset: executable bits: a" if is_lost else None
    )


def test_nothing_lost_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, "sub/a")

    assert survey(tmp_path).losses() is None


def test_links_and_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/link").symlink_to("nowhere")
    (tmp_path / "two").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "two") + b"/\xff")).write_text("x")

    with pytest.raises(CannotHold):
        survey(tmp_path / "one")
    with pytest.raises(NotUTF8):
        survey(tmp_path / "two")


LEFT = (".DS_Store", "sub/.DS_Store", "sub/__pycache__/a.pyc", "only/.DS_Store")


@pytest.mark.parametrize("below", ["", "data/"])
def test_leavings_are_no_items(tmp_path: Path, below: str) -> None:
    write(tmp_path, *(f"{below}{relpath}" for relpath in ("a", "sub/b", *LEFT)))

    found = survey(tmp_path, excluded=Excluded(DEFAULT))

    assert sorted(found.items) == ["a", "sub/b"]
    assert found.excluded.count == 4
    assert sorted(found.excluded.first) == sorted(
        [".DS_Store", "only/.DS_Store", "sub/.DS_Store", "sub/__pycache__/"]
    )
    assert str(found.empty_directories) == "only"
    assert len(survey(tmp_path).items) == 6


def test_leavings_beside_data_leave_the_layout_dtools(tmp_path: Path) -> None:
    write(tmp_path, "data/a", ".DS_Store", ".Trash-1000/files/x")

    found = survey(tmp_path, excluded=Excluded(DEFAULT), by_itself=True)

    assert (found.layout, sorted(found.items)) == (Layout.DTOOL, ["a"])
    assert str(found.excluded) == ".DS_Store, .Trash-1000/"
    assert found.left_over == []


def test_pattern_that_matches_the_layout_itself_changes_nothing_of_it(tmp_path: Path) -> None:
    write(tmp_path, "data/a.yml", "README.yml", "data/.hidden")

    found = survey(tmp_path, excluded=Excluded([".*", "*.yml", "data"]))

    assert found.layout is Layout.DTOOL
    assert (found.readme, sorted(found.items)) == (b"README.yml", [])
    assert str(found.excluded) == ".hidden, a.yml"


def test_what_a_manifest_names_is_an_item_whatever_its_name(tmp_path: Path) -> None:
    named = {"a": b"1", ".DS_Store": b"2", "__pycache__/x": b"3"}
    directory = make_dataset(tmp_path, "frozen", named)
    write(directory, "data/sub/.DS_Store", "data/__pycache__/y")
    (directory / "data/.ipynb_checkpoints").mkdir()

    found = survey(directory, excluded=Excluded(DEFAULT), by_itself=True)

    assert sorted(found.items) == sorted(named)
    assert sorted(found.excluded.first) == ["__pycache__/y", "sub/.DS_Store"]
    assert str(found.empty_directories) == "sub"


def test_link_with_an_excluded_name_is_no_reason_to_refuse(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / ".#a").symlink_to("me@here.1:2")

    assert sorted(survey(tmp_path, excluded=Excluded(DEFAULT)).items) == ["a"]
