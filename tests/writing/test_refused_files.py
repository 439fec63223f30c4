"""The files that a staged dataset was refused: kept beside it, and told while they are missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dserverfs.writing.staging.refused_files import (
    LINK,
    MAX_NOTED,
    NOT_UTF8,
    SPECIAL,
    TOO_LONG,
    RefusedFile,
    RefusedFiles,
    told,
)
from tests.support.mutations import mangled


@pytest.fixture
def refused(tmp_path: Path) -> RefusedFiles:
    (tmp_path / "tree/sub").mkdir(parents=True)
    return RefusedFiles(tmp_path, tmp_path / "tree")


def test_what_was_refused_is_missing_until_it_is_there_or_its_directory_is_gone(
    refused: RefusedFiles, tmp_path: Path
) -> None:
    for path in ("pw", "sub/pw", "pw", "sub/\udcff"):
        refused.note(path, LINK)
    again = RefusedFiles(tmp_path, tmp_path / "tree")  # as the next daemon knows it
    everything = [RefusedFile(path, LINK) for path in ("pw", "sub/pw", "sub/\udcff")]
    assert again.missing() == everything
    again.note("sub/pw", LINK)
    assert refused.missing() == everything

    (tmp_path / "tree/pw").write_text("copied with -L")
    assert refused.missing() == everything[1:]

    (tmp_path / "tree/sub").rmdir()
    assert refused.missing() == []


def test_one_with_a_name_that_no_file_can_have_is_told(refused: RefusedFiles) -> None:
    refused.note("x" * 5000, TOO_LONG)
    refused.note(f"{'x' * 300}/below", TOO_LONG)

    assert refused.missing() == [RefusedFile("x" * 5000, TOO_LONG)]


def test_number_of_them_is_bounded(refused: RefusedFiles, tmp_path: Path) -> None:
    for number in range(MAX_NOTED + 10):
        refused.note(str(number), LINK)

    assert len(refused.missing()) == MAX_NOTED
    assert len((tmp_path / "refused").read_bytes().splitlines()) == MAX_NOTED


def test_one_that_cannot_be_noted_harms_nothing(tmp_path: Path) -> None:
    refused = RefusedFiles(tmp_path / "gone", tmp_path / "gone/tree")

    refused.note("pw", LINK)

    assert refused.missing() == []


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=True))
def test_damaged_file_gives_lines_or_none(
    refused: RefusedFiles, tmp_path: Path, chance: random.Random
) -> None:
    text = b'["pw", "symbolic link"]\n["sub/x", "symbolic link"]\n'
    content = mangled(text, (b"\n", b"[", b"]", b'"', b"\\", b"\xff", b"\\ud800", b"null"), chance)
    (tmp_path / "refused").write_bytes(content)

    told(refused.missing())


def test_each_kind_is_told_in_a_line() -> None:
    many = [RefusedFile(f"l{number}", LINK) for number in range(12)]

    assert told([RefusedFile("pw", LINK)]) == [
        "pw was refused (symbolic link) and is not in the dataset; cp -rL copies what links point"
        " to"
    ]
    links, pipe = told([*many, RefusedFile("pipe", SPECIAL)])
    assert links.startswith("l0, l1, l2, l3, l4, l5, l6, l7, l8, l9 and 2 more were refused")
    assert "(12 times symbolic link) and are not in the dataset; cp -rL" in links
    assert pipe == "pipe was refused (device, pipe or socket) and is not in the dataset"
    assert "UTF-8" in told([RefusedFile("\udcff", NOT_UTF8)])[0]
