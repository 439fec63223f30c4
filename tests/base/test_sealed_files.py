"""What a seal tells: a file is what was written under its name, or it is damaged."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.sealed_files import (
    SEAL_BYTES,
    Sealing,
    append_seal,
    has_seal,
    has_seal_beside,
    sealed_content,
    write_seal_beside,
    write_sealed,
)

CONTENT = b"what was written, " * 300


def write(path: Path) -> None:
    write_sealed(path, CONTENT)


def write_appended(path: Path) -> None:
    path.write_bytes(CONTENT)
    append_seal(path, path)


def write_beside(path: Path) -> None:
    sealing = Sealing(path)
    for start in range(0, len(CONTENT), 1000):
        sealing.add(CONTENT[start : start + 1000])
    write_seal_beside(path, sealing)
    path.write_bytes(CONTENT)


FORMS: dict[str, tuple[Callable[[Path], None], Callable[[Path], bool]]] = {
    "content": (write, lambda path: sealed_content(path) == CONTENT),
    "appended": (write_appended, has_seal),
    "beside": (write_beside, has_seal_beside),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(CONTENT) + SEAL_BYTES), bit=st.integers(0, 7))
def test_flipped_bit_and_cut_are_found(
    form: str, place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "name"
    write_it, is_sound = FORMS[form]
    write_it(path)
    assert is_sound(path)
    whole = path.read_bytes()
    place %= len(whole)

    for wrong in (
        whole[:place],
        whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :],
        whole + b"\0",
        whole[:place] + bytes(4096) + whole[place + 4096 :],
    ):
        path.write_bytes(wrong)
        assert not is_sound(path)


@pytest.mark.parametrize("form", FORMS)
def test_file_of_another_name_is_not_taken_for_this_one(form: str, tmp_path: Path) -> None:
    write_it, is_sound = FORMS[form]
    for name in ("one", "other"):
        write_it(tmp_path / name)

    (tmp_path / "one").rename(tmp_path / "other")
    if form == "beside":
        (tmp_path / "one.seal").rename(tmp_path / "other.seal")

    assert not is_sound(tmp_path / "other")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_file_is_an_error_that_waits_for_nobody(form: str, tmp_path: Path) -> None:
    _, is_sound = FORMS[form]
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    write_sealed(tmp_path / "file", CONTENT)
    (tmp_path / "link").symlink_to(tmp_path / "file")

    for name in ("fifo", "directory", "link", "missing"):
        with pytest.raises(OSError, match=name):
            is_sound(tmp_path / name)


def test_what_is_no_file_gives_way_to_one(tmp_path: Path) -> None:
    for name, make in (("fifo", os.mkfifo), ("directory", os.makedirs)):
        make(tmp_path / name)

        write_sealed(tmp_path / name, CONTENT)

        assert sealed_content(tmp_path / name) == CONTENT


def test_seal_is_what_it_was(tmp_path: Path) -> None:
    """Another form would have all that is kept fetched anew."""
    write_sealed(tmp_path / "name", b"content")

    sum_of_both = zlib.crc32(b"namecontent")
    assert (tmp_path / "name").read_bytes() == b"content\nsealed 1 %020d %08x\n" % (7, sum_of_both)
