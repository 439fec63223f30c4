"""Reads and writes of local files that the standard library does not do as they are needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dserverfs.base.durable_files import sync_file_system
from dserverfs.base.local_files import (
    RENAME_EXCHANGE,
    create_private,
    is_full,
    make_file_private,
    make_private,
    remove_if_possible,
    rename,
    reserve,
    subdirectories,
    with_own_descriptor,
    write_all,
)
from tests.support.small_disk import MIB, small_disk


def test_disk_that_takes_a_part_at_a_time_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        write_all(fd, b"0123456789", 2)
    finally:
        os.close(fd)

    assert (tmp_path / "file").read_bytes() == b"\0\x000123456789"


def test_space_is_reserved_where_it_can_be(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        reserve(file.fileno(), 3 * MIB)
    assert (tmp_path / "file").stat().st_size == 3 * MIB
    assert (tmp_path / "file").stat().st_blocks * 512 >= 3 * MIB

    for end in (ends := os.pipe()):
        reserve(end, MIB)
    for end in ends:
        os.close(end)

    with small_disk(tmp_path / "disk", 2 * MIB) as disk, (disk / "file").open("wb") as file:
        with pytest.raises(OSError, match="No space left") as caught:
            reserve(file.fileno(), 3 * MIB)
        assert is_full(caught.value)


def test_call_has_a_descriptor_of_its_own_that_is_closed_after_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    call = with_own_descriptor(fd, lambda own: (own, os.pread(own, 10, 0)))
    os.close(fd)

    own, content = call()

    assert content == b"content"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(own)


def test_directories_are_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        make_private(tmp_path / "one/two")
        make_private(tmp_path / "one/two")
    finally:
        os.umask(before)

    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("one", "one/two")]
    assert modes == [0o700, 0o700]


def test_private_file_is_made_once_and_keeps_its_content(tmp_path: Path) -> None:
    create_private(tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").write_bytes(b"kept")

    create_private(tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("mode", [None, 0o644, 0o666, 0o600, 0o400])
def test_file_that_is_made_private_keeps_its_content(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "file"
    if mode is not None:
        path.write_bytes(b"kept")
        path.chmod(0o200 | mode)

    make_file_private(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == (b"kept" if mode is not None else b"")


def test_device_stays_as_it_is() -> None:
    before = os.stat(os.devnull).st_mode

    make_file_private(Path(os.devnull))

    assert os.stat(os.devnull).st_mode == before


def test_subdirectories_are_directories_and_no_links_to_one(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "directory")

    assert subdirectories(tmp_path) == [tmp_path / "directory"]
    assert subdirectories(tmp_path / "none") == []


def test_file_that_cannot_be_removed_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()

    assert remove_if_possible(tmp_path / "none")
    assert not remove_if_possible(tmp_path / "directory")


def test_files_are_exchanged_and_errors_of_the_c_library_name_the_path(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    Path(one).write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match="one"):
        rename(one, other, RENAME_EXCHANGE)
    Path(other).write_bytes(b"2")

    rename(one, other, RENAME_EXCHANGE)

    assert Path(one).read_bytes() == b"2"
    assert Path(other).read_bytes() == b"1"
    sync_file_system(tmp_path)


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_full_disk_is_told_from_one_that_fails(number: int, full: bool) -> None:
    assert is_full(OSError(number, os.strerror(number))) is full
