"""The seams in `os`, `open` and `fcntl`: what is done to files of the simulation's disk.

`install` puts them into this process for good, before dserverfs is imported. At each one the
disk is asked (see `disk`), then the real call is made.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import random
import stat
import uuid
from collections.abc import Callable
from typing import Any

from tests.simulation import threads
from tests.simulation.disk import FREE_BYTES, REAL, WRITES, Disk, quietly, real_flock, real_open

_disk: Disk | None = None


def use(disk: Disk | None) -> None:
    """Have this one be the disk; None: the machine's own, without seams."""
    global _disk
    _disk = disk


def _text(path: Any) -> str:
    return os.fsdecode(path) if not isinstance(path, int) else ""


def _in_task(path: str) -> Disk | None:
    """Return the disk if a task uses a path of its; else nothing happens there."""
    disk = _disk
    if disk is None or disk.scheduler.current is None or not disk.is_ours(path):
        return None
    disk.scheduler.require_alive()
    return disk


def _by_fd() -> Disk | None:
    disk = _disk
    if disk is None or disk.scheduler.current is None:
        return None
    disk.scheduler.require_alive()
    return disk


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    text = _text(path)
    disk = _in_task(text)
    if disk is None or not flags & WRITES:
        return int(REAL["open"](path, flags, mode, dir_fd=dir_fd))
    disk.seam("open", text)
    was_there = os.path.lexists(text)
    fd = int(REAL["open"](path, flags, mode, dir_fd=dir_fd))
    disk.note_open(text, flags, was_there)
    if not was_there or flags & os.O_TRUNC:
        disk.changed(REAL["fstat"](fd))
    return fd


def _io_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
    text = _text(file)
    writes = any(letter in mode for letter in "wax+")
    disk = _in_task(text) if writes and text else None
    if disk is None:
        if _disk is not None:
            _disk.scheduler.require_alive()
        return real_open(file, mode, *arguments, **options)
    disk.seam("open", text)
    was_there = os.path.lexists(text)
    opened = real_open(file, mode, *arguments, **options)
    disk.note_open(text, os.O_RDWR, was_there)
    return opened


def _close(fd: int) -> None:
    if _disk is not None:
        _disk.closed(fd)
    REAL["close"](fd)


def _written(name: str) -> Callable[..., Any]:
    """Return os's function that changes the content of an open file."""
    real = REAL[name]

    def write(fd: int, *arguments: Any) -> Any:
        disk = _by_fd()
        if disk is None:
            return real(fd, *arguments)
        status = REAL["fstat"](fd)
        if not stat.S_ISREG(status.st_mode):
            return real(fd, *arguments)
        disk.seam(name, os.readlink(f"/proc/self/fd/{fd}"))
        result = real(fd, *arguments)
        disk.dirty.add(status.st_ino)
        disk.changed(REAL["fstat"](fd))
        return result

    return write


def _truncate(path: Any, length: int) -> None:
    if isinstance(path, int):
        os.ftruncate(path, length)
        return
    disk = _in_task(_text(path))
    if disk is not None:
        disk.seam("truncate", _text(path))
    REAL["truncate"](path, length)
    if disk is not None:
        status = REAL["stat"](path)
        disk.dirty.add(status.st_ino)
        disk.changed(status)


def _fsync(fd: int) -> None:
    disk = _by_fd()
    if disk is not None:
        disk.seam("fsync", os.readlink(f"/proc/self/fd/{fd}"))
        disk.sync(fd)


def _rename(old: Any, new: Any, **options: Any) -> None:
    old_text, new_text = _text(old), _text(new)
    disk = _in_task(new_text)
    if disk is None:
        REAL["rename"](old, new, **options)
        return
    disk.seam("rename", new_text)
    bring_back = disk.bury(new_text) if os.path.isfile(new_text) else lambda: None
    REAL["rename"](old, new, **options)
    disk.changed(REAL["lstat"](new_text), _mtime_of(disk, new_text))

    def undo() -> None:
        quietly("rename", new_text, old_text)
        bring_back()

    disk.did(undo)


def _mtime_of(disk: Disk, path: str) -> int:
    return disk.dated(REAL["lstat"](path)).st_mtime_ns


def _link(old: Any, new: Any, **options: Any) -> None:
    text = _text(new)
    disk = _in_task(text)
    if disk is not None:
        disk.seam("link", text)
    REAL["link"](old, new, **options)
    if disk is not None:
        disk.did(lambda: quietly("unlink", text))


def _unlink(path: Any, *, dir_fd: int | None = None) -> None:
    text = _text(path)
    if dir_fd is not None and _disk is not None:
        text = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{text}"
    disk = _in_task(text)
    bring_back: Callable[[], None] | None = None
    if disk is not None:
        disk.seam("unlink", text)
        bring_back = disk.bury(text)
    REAL["unlink"](path, dir_fd=dir_fd)
    if disk is not None and bring_back is not None:
        disk.did(bring_back)


def _mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    text = _text(path)
    disk = _in_task(text)
    if disk is not None:
        disk.seam("mkdir", text)
    REAL["mkdir"](path, mode, dir_fd=dir_fd)
    if disk is not None:
        disk.did(lambda: quietly("rmdir", text))


def _rmdir(path: Any, *, dir_fd: int | None = None) -> None:
    text = _text(path)
    if dir_fd is not None and _disk is not None:
        text = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{text}"
    disk = _in_task(text)
    if disk is not None:
        disk.seam("rmdir", text)
    REAL["rmdir"](path, dir_fd=dir_fd)
    if disk is not None:
        disk.did(lambda: quietly("mkdir", text, 0o700))


def _utime(path: Any, times: Any = None, *, ns: tuple[int, int] | None = None, **more: Any) -> None:
    disk = _by_fd() if isinstance(path, int) else _in_task(_text(path))
    if ns is not None:
        more["ns"] = ns
    if disk is not None:
        disk.seam("utime", _text(path))
    REAL["utime"](path, times, **more)
    if disk is not None:
        tick_ns = disk.scheduler.wall_ns() // threads.TICK_NS * threads.TICK_NS
        disk.changed(REAL["stat"](path), ns[1] if ns is not None else tick_ns)


def _chmod(path: Any, mode: int, **options: Any) -> None:
    disk = None if isinstance(path, int) else _in_task(_text(path))
    if disk is not None:
        disk.seam("chmod", _text(path))
    REAL["chmod"](path, mode, **options)
    if disk is not None:
        disk.changed(REAL["stat"](path), _mtime_of(disk, _text(path)))


def _stat_like(name: str) -> Callable[..., os.stat_result]:
    real = REAL[name]

    def look(path: Any, **options: Any) -> os.stat_result:
        status: os.stat_result = real(path, **options)
        return status if _disk is None else _disk.dated(status)

    return look


class _Entry:
    """An entry of a directory, with dates of the simulated clock."""

    def __init__(self, entry: os.DirEntry[Any]) -> None:
        self._entry = entry
        self.name, self.path = entry.name, entry.path
        self.is_dir, self.is_file, self.is_symlink = entry.is_dir, entry.is_file, entry.is_symlink
        self.inode = entry.inode

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        status = self._entry.stat(follow_symlinks=follow_symlinks)
        return status if _disk is None else _disk.dated(status)

    def __fspath__(self) -> str:
        return str(self.path)


class _Entries:
    def __init__(self, path: Any) -> None:
        self._entries = REAL["scandir"](path)

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> _Entries:
        return self

    def __next__(self) -> _Entry:
        return _Entry(next(self._entries))

    def close(self) -> None:
        self._entries.close()


def _statvfs(path: Any) -> os.statvfs_result:
    values = list(REAL["statvfs"](path))
    block = values[1]
    values[2] = 2 * FREE_BYTES // block
    values[3] = values[4] = FREE_BYTES // block
    return os.statvfs_result(values)


def _getpid() -> int:
    task = None if _disk is None else _disk.scheduler.current
    return int(REAL["getpid"]()) if task is None else task.process.pid


def _urandom(count: int) -> bytes:
    return bytes(REAL["urandom"](count)) if _disk is None else random.randbytes(count)


def _uuid4() -> uuid.UUID:
    return uuid.UUID(bytes=_urandom(16), version=4)


def _flock(fd: int, operation: int) -> None:
    disk = _by_fd()
    if disk is None:
        real_flock(fd, operation)
    else:
        disk.lock(fd, operation)


def _call_libc(name: str, *arguments: int | bytes, path: str) -> None:
    disk = _by_fd()
    if name == "syncfs":
        if disk is not None:
            disk.seam("fsync", path)
            disk.sync_all()
        return
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)


def install() -> None:
    """Put the seams into this process, for good; before dserverfs is imported."""
    stolen: Any = os
    stolen.open, stolen.close, stolen.truncate = _open, _close, _truncate
    for name in ("pwrite", "write", "ftruncate"):
        setattr(stolen, name, _written(name))
    stolen.fsync = stolen.fdatasync = _fsync
    stolen.rename = stolen.replace = _rename
    stolen.link, stolen.mkdir, stolen.rmdir = _link, _mkdir, _rmdir
    stolen.unlink = stolen.remove = _unlink
    stolen.utime, stolen.chmod = _utime, _chmod
    for name in ("stat", "fstat", "lstat"):
        setattr(stolen, name, _stat_like(name))
    stolen.statvfs, stolen.getpid, stolen.urandom = _statvfs, _getpid, _urandom
    stolen.scandir = _Entries
    files: Any = io
    files.open = builtins.open = _io_open
    uuid.uuid4 = _uuid4
    locks: Any = fcntl
    locks.flock = _flock


def install_libc() -> None:
    """Put the seam of the C library's calls into place; dserverfs is imported by now."""
    from dserverfs.base import durable_files, local_files

    modules: Any = (durable_files, local_files)
    for module in modules:
        module.call_libc = _call_libc
