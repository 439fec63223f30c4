"""Local files of staged datasets: what is kept beside them through every change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dserverfs.base.local_files import RENAME_EXCHANGE
from dserverfs.writing.staging.file_hashes import Stamp
from dserverfs.writing.staging.incremental_hash import STEP_BYTES, HashAhead
from dserverfs.writing.staging.staged_files import StagedFiles

CONTENT = b"content!" * (STEP_BYTES // 8)


@pytest.fixture
def hashes() -> HashAhead:
    return HashAhead()


@pytest.fixture
def files(hashes: HashAhead) -> StagedFiles:
    return StagedFiles(hashes)


def written(files: StagedFiles, path: Path) -> None:
    fd = files.create(str(path), 0o644, os.O_EXCL)
    inode = os.fstat(fd).st_ino
    files.begin_write(inode, fd, 0)
    os.pwrite(fd, CONTENT, 0)
    files.end_write(inode, fd, len(CONTENT))
    files.end_writing(inode, fd)
    os.close(fd)


def is_followed(hashes: HashAhead, path: Path) -> bool:
    """Return whether what is hashed of a file is the beginning of its MD5; follow it no more."""
    begun = hashes.take(Stamp.of(path.stat()))
    if begun is None:
        return False
    with path.open("rb") as file:
        file.seek(begun.length)
        begun.md5.update(file.read())
    return begun.md5.hexdigest() == hashlib.md5(path.read_bytes()).hexdigest()


HARMLESS: dict[str, Callable[[StagedFiles, Path], Path]] = {
    "nothing": lambda files, path: path,
    "mode": lambda files, path: changed(files, path, 0o400, None, None, None),
    "times": lambda files, path: changed(files, path, None, None, 1, 2),
    "rename": lambda files, path: renamed(files, path, 0),
    "exchange": lambda files, path: renamed(files, path, RENAME_EXCHANGE),
    "link": lambda files, path: linked(files, path),
}


def changed(files: StagedFiles, path: Path, *changes: int | None) -> Path:
    files.change(str(path), *changes)
    return path


def renamed(files: StagedFiles, path: Path, flags: int) -> Path:
    new = path.with_name("new")
    new.touch()
    files.rename(str(path), str(new), flags)
    return new


def linked(files: StagedFiles, path: Path) -> Path:
    new = path.with_name("new")
    files.link(str(path), str(new))
    return new


@pytest.mark.parametrize("what", HARMLESS)
def test_file_is_followed_through_changes_of_other_than_its_content(
    files: StagedFiles, hashes: HashAhead, tmp_path: Path, what: str
) -> None:
    written(files, tmp_path / "file")

    path = HARMLESS[what](files, tmp_path / "file")

    assert is_followed(hashes, path)


def test_file_that_is_cut_is_not_followed(
    files: StagedFiles, hashes: HashAhead, tmp_path: Path
) -> None:
    written(files, tmp_path / "cut")
    written(files, tmp_path / "opened")
    path = tmp_path / "opened"

    changed(files, tmp_path / "cut", None, 3, None, None)
    os.close(files.open(str(path), path.stat().st_ino, os.O_RDWR | os.O_TRUNC))

    assert not is_followed(hashes, tmp_path / "cut")
    assert not is_followed(hashes, path)


def test_replaced_and_removed_files_are_not_followed(
    files: StagedFiles, hashes: HashAhead, tmp_path: Path
) -> None:
    for name in ("old", "replaced", "removed"):
        written(files, tmp_path / name)
    replaced, removed = ((tmp_path / name).stat() for name in ("replaced", "removed"))

    files.rename(str(tmp_path / "old"), str(tmp_path / "replaced"), 0)
    files.remove(str(tmp_path / "removed"))

    assert not hashes.follows(replaced.st_ino)
    assert not hashes.follows(removed.st_ino)
    assert is_followed(hashes, tmp_path / "replaced")


def test_mode_of_a_file_that_the_owner_may_not_read_is_kept(
    files: StagedFiles, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    os.close(files.create(str(path), 0o044, os.O_EXCL))

    assert files.mode(str(path), path.stat()) == 0o044
    assert path.read_bytes() == b""


def test_file_that_is_there_is_opened_unless_it_must_be_new(
    files: StagedFiles, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    with pytest.raises(FileExistsError):
        files.create(str(path), 0o644, os.O_EXCL)
    fd = files.create(str(path), 0o640, 0)

    assert os.pread(fd, 10, 0) == b"content"
    assert files.mode(fd, path.stat()) == 0o640
    os.close(fd)
