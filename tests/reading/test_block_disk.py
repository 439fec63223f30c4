"""What the block cache puts on the disk, and what it takes from there: its own form alone."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import diskcache.core
import pytest

from dserverfs.base.local_files import write_all
from dserverfs.reading.cache import block_files
from dserverfs.reading.cache.block_files import (
    MAX_BLOCKS_IN_FILE,
    MIN_FILE_SIZE,
    BytesDisk,
    StoredFile,
    Value,
    files_in,
    size_on_disk,
)

RAW, BINARY, PICKLE = (
    diskcache.core.MODE_RAW,
    diskcache.core.MODE_BINARY,
    diskcache.core.MODE_PICKLE,
)
SMALL, LARGE = memoryview(b"small"), memoryview(bytes(range(256)) * (MIN_FILE_SIZE // 256))


@pytest.fixture
def disk(tmp_path: Path) -> BytesDisk:
    return BytesDisk(str(tmp_path), min_file_size=MIN_FILE_SIZE)


@pytest.mark.parametrize("key", [b"x", 1, None, ("x",)])
def test_keys_are_text(disk: BytesDisk, key: Any) -> None:
    with pytest.raises(TypeError):
        disk.put(key)
    with pytest.raises(ValueError, match="is text"):
        disk.get(key, True)
    with pytest.raises(ValueError, match="is text"):
        disk.get("x", False)
    assert disk.put("x") == ("x", True)
    assert disk.get("x", True) == "x"


def test_only_prepared_blocks_are_stored(disk: BytesDisk) -> None:
    (small, large) = disk.prepare([SMALL, LARGE])
    for value, is_file in ((b"x", False), ({"a": 1}, False), (small, True)):
        with pytest.raises(TypeError):
            disk.store(value, is_file)

    assert disk.store(small, False)[:3] == (0, RAW, None)
    assert bytes(disk.store(small, False)[3]) == bytes(SMALL)
    assert large.file is not None
    assert disk.store(large, False) == (len(LARGE), BINARY, large.file.name, None)


def test_blocks_of_any_sizes_come_out_of_their_files_as_they_went_in(
    disk: BytesDisk, tmp_path: Path
) -> None:
    sizes = [5, MIN_FILE_SIZE, MIN_FILE_SIZE - 1, MIN_FILE_SIZE + 1, 3 * MIN_FILE_SIZE + 7, 0]
    contents = [os.urandom(size) for size in sizes]

    values = disk.prepare([memoryview(content) for content in contents])

    assert [value.file is not None for value in values] == [s >= MIN_FILE_SIZE for s in sizes]
    for value, content in zip(values, contents, strict=True):
        assert bytes(value.data) == content
        for file in filter(None, [value.file]):
            found = disk.fetch(BINARY, file.name, None, False)
            assert (found.name, found.start) == (file.name, file.start)
            for opened in (file.file, found.file):
                assert os.pread(opened.fd, len(content), file.start) == content
    for _ in range(40):  # in directories that are there, and in new ones
        disk.prepare([LARGE])
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.blk")} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o700}


def test_file_that_is_open_is_not_opened_again(disk: BytesDisk) -> None:
    values = disk.prepare([LARGE, LARGE])
    first, second = (value.file.name for value in values if value.file is not None)
    del values

    found = disk.fetch(BINARY, first, None, False)
    disk.remove(second)  # its name may be gone by now
    other = disk.fetch(BINARY, second, None, False)

    assert isinstance(found, StoredFile)
    assert isinstance(other, StoredFile)
    assert found.file is other.file
    fd = found.file.fd
    del found, other
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(FileNotFoundError):
        disk.fetch(BINARY, second, None, False)


@pytest.mark.parametrize(
    ("mode", "filename", "value"),
    [
        (RAW, None, "text"),
        (RAW, None, None),
        (PICKLE, None, b"x"),
        (PICKLE, f"0/{'0' * 31}-0.blk", None),
        (BINARY, None, None),
        (BINARY, 5, None),
        (BINARY, "../../etc/passwd", None),
        (BINARY, "/etc/passwd", None),
        (BINARY, f"0/{'0' * 31}-0.blk\n", None),
    ],
)
def test_row_of_another_form_is_an_error(
    disk: BytesDisk, mode: int, filename: Any, value: Any
) -> None:
    with pytest.raises(OSError, match=r"cache's|form"):
        disk.fetch(mode, filename, value, False)


def test_link_in_place_of_a_file_is_not_followed(disk: BytesDisk, tmp_path: Path) -> None:
    name = f"0/{'0' * 31}-0.blk"
    (tmp_path / "0").mkdir()
    (tmp_path / name).symlink_to("/etc/passwd")

    with pytest.raises(OSError, match="symbolic links"):
        disk.fetch(BINARY, name, None, False)


def test_only_files_of_the_cache_are_removed_and_counted(disk: BytesDisk, tmp_path: Path) -> None:
    (value,) = disk.prepare([LARGE])
    (tmp_path / "kept").write_text("x")
    before = disk.times_removed

    disk.remove("kept")
    disk.remove("../kept")
    assert disk.times_removed == before
    disk.discard(value)
    disk.discard(value)  # gone already
    disk.discard(Value(SMALL, None))

    assert disk.times_removed == before + 2
    assert (tmp_path / "kept").exists()
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("at", range(3))
def test_disk_that_fails_at_any_file_leaves_none(
    disk: BytesDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    writes = 0

    def fail(fd: int, data: memoryview, offset: int) -> None:
        nonlocal writes
        writes += 1
        if writes > at * MAX_BLOCKS_IN_FILE:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(fd, data, offset)

    monkeypatch.setattr(block_files, "write_all", fail)

    with pytest.raises(OSError, match="No space"):
        disk.prepare([LARGE] * (3 * MAX_BLOCKS_IN_FILE))

    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_file_system_without_links_is_asked_for_one_once(
    disk: BytesDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    asked = []

    def refuse(source: str, target: str) -> None:
        asked.append(target)
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    for _ in range(2):
        assert len(disk.prepare([LARGE] * count)) == count

    assert len(asked) == (count > 1)
    assert len(files_in(tmp_path)) == 2 * count


def test_error_that_is_not_of_links_is_no_reason_to_try_without(
    disk: BytesDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refuse(fd: int, data: memoryview, offset: int) -> None:
        calls.append(offset)
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(block_files, "write_all", refuse)

    with pytest.raises(OSError, match="not permitted"):
        disk.prepare([LARGE])
    assert len(calls) == 1


def test_size_is_that_of_files_once_each_and_of_the_database(
    disk: BytesDisk, tmp_path: Path
) -> None:
    sqlite3.connect(tmp_path / "cache.db").close()
    (tmp_path / "cache.db").write_bytes(bytes(8192))
    disk.prepare([LARGE, LARGE])
    names = files_in(tmp_path)
    inodes = {(tmp_path / name).stat().st_ino: (tmp_path / name).stat().st_blocks for name in names}

    assert len(names) == 2
    assert len(inodes) == 1
    expected = (sum(inodes.values()) + (tmp_path / "cache.db").stat().st_blocks) * 512
    assert size_on_disk(tmp_path) == expected
    assert expected >= 2 * len(LARGE)
