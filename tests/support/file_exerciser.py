"""Random reads and writes of one file, compared with what its bytes must be.

They are what programs do to a file: reads and writes at any place, by mappings too and past the
kernel's pages, with a few handles at once, truncates, appends, copies of ranges, allocations.
Each read is compared with a copy in memory, and so is the whole file now and then and at the
end. What the file system does not support must leave the file as it was.

`python -m tests.support.file_exerciser FILE --operations N --seed S` prints the MD5 of the file
that is left.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import mmap
import os
import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

MAX_SIZE = 300_000
MAX_LENGTH = 70_000  # of one read or write: more than the 64 KiB of a kernel's request
WHOLE_EVERY = 200  # operations
HANDLES = 3
_PAGE = mmap.PAGESIZE
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE, _COLLAPSE_RANGE, _INSERT_RANGE = 1, 2, 16, 8, 32
_ALLOCATIONS = (
    0,
    _KEEP_SIZE,
    _PUNCH_HOLE | _KEEP_SIZE,
    _ZERO_RANGE,
    _COLLAPSE_RANGE,
    _INSERT_RANGE,
)
_REMEMBERED = 30  # operations, told with a failure

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class FileExerciser:
    """One file, its copy in memory, and the handles it is used by."""

    def __init__(self, path: Path, seed: int, content: bytes | None = None) -> None:
        """`content` is what a file has that is only read; without it the file is made."""
        self._path = path
        self._rng = random.Random(seed)
        self._expected = bytearray(content or b"")
        self._is_read_only = content is not None
        self._limit = max(self._size + _PAGE, MAX_SIZE)
        self._fds: list[int] = []
        self._last: deque[str] = deque(maxlen=_REMEMBERED)
        self.done: Counter[str] = Counter()

    def run(self, operations: int) -> str:
        """Do that many operations; return the file's MD5. AssertionError says what is wrong."""
        reads: dict[Callable[[], None], int] = {
            self._read: 10,
            self._read_by_mapping: 5,
            self._read_past_the_pages: 2,
            self._forget_pages: 2,
            self._reopen: 3,
        }
        writes: dict[Callable[[], None], int] = {
            self._write: 10,
            self._write_vector: 2,
            self._write_by_mapping: 5,
            self._write_past_the_pages: 2,
            self._append: 2,
            self._truncate: 4,
            self._copy_range: 2,
            self._allocate: 2,
            self._allocate_as_libraries_do: 1,
            self._sync: 1,
        }
        acts = reads if self._is_read_only else reads | writes
        try:
            self._open(0 if self._is_read_only else os.O_CREAT | os.O_TRUNC)
            for number in range(operations):
                (act,) = self._rng.choices([*acts], [*acts.values()])
                act()
                self._compare(f"{act.__name__}: size", os.fstat(self._fd()).st_size, self._size)
                if number % WHOLE_EVERY == 0:
                    self._compare_all()
            self._compare_all()
        finally:
            while self._fds:
                os.close(self._fds.pop())
        self._compare("content when closed", self._path.read_bytes(), self._expected)
        return hashlib.md5(self._expected).hexdigest()

    @property
    def content(self) -> bytes:
        """What the file must have."""
        return bytes(self._expected)

    def _open(self, how: int = 0) -> None:
        access = os.O_RDONLY if self._is_read_only else os.O_RDWR
        self._fds.append(os.open(self._path, access | how, 0o644))

    @property
    def _size(self) -> int:
        return len(self._expected)

    def _fd(self) -> int:
        return self._rng.choice(self._fds)

    def _length(self) -> int:
        return self._rng.choice([1, _PAGE, self._rng.randrange(1, MAX_LENGTH)])

    def _offset(self, limit: int) -> int:
        """Return a place below `limit`, half of them where a page begins."""
        offset = self._rng.randrange(limit) if limit > 0 else 0
        return offset // _PAGE * _PAGE if self._rng.randrange(2) else offset

    def _note(self, what: str, offset: int = 0, length: int = 0) -> None:
        self._last.append(f"{what} {offset:#x} {length:#x}")
        self.done[what] += 1

    def _compare(self, what: str, found: object, expected: object) -> None:
        if found == expected:
            return
        if isinstance(found, (bytes, bytearray)) and isinstance(expected, (bytes, bytearray)):
            at = next(
                (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
                min(len(found), len(expected)),
            )
            found, expected = (
                f"{x[at : at + 16].hex()} of {len(x)} bytes" for x in (found, expected)
            )
            what = f"{what} from {at:#x} on"
        done = "\n".join(self._last)
        raise AssertionError(f"{what}: {found}, and not {expected}; the last were\n{done}")

    def _compare_all(self) -> None:
        self._note("read all")
        self._compare("content", os.pread(self._fd(), self._size + _PAGE, 0), self._expected)

    # Reads

    def _read(self) -> None:
        offset, length = self._offset(self._limit), self._length()
        self._note("read", offset, length)
        found = os.pread(self._fd(), length, offset)
        self._compare("read", found, self._expected[offset : offset + length])

    def _read_by_mapping(self) -> None:
        if not self._size:
            return
        offset, length = self._offset(self._size), self._length()
        self._note("read a mapping", offset, length)
        with mmap.mmap(self._fd(), 0, access=mmap.ACCESS_READ) as mapped:
            found = mapped[offset : offset + length]
        self._compare("mapping", found, self._expected[offset : offset + length])

    def _read_past_the_pages(self) -> None:
        """Read with O_DIRECT."""
        offset = self._offset(self._limit) // _PAGE * _PAGE
        with mmap.mmap(-1, _PAGE * self._rng.randrange(1, 17)) as buffer:
            self._note("read O_DIRECT", offset, len(buffer))
            read = self._directly(os.O_RDONLY, lambda fd: os.preadv(fd, [buffer], offset))
            found = buffer[:read]
            self._compare("O_DIRECT", found, self._expected[offset : offset + len(buffer)])

    # Writes

    def _write(self) -> None:
        offset, data = self._place_and_data("write")
        self._wrote(os.pwrite(self._fd(), data, offset), data, offset)

    def _write_vector(self) -> None:
        offset, data = self._place_and_data("writev")
        middle = len(data) // 2
        written = os.pwritev(self._fd(), [data[:middle], data[middle:]], offset)
        self._wrote(written, data, offset)

    def _append(self) -> None:
        data = self._rng.randbytes(min(self._length(), self._limit - self._size))
        self._note("append", self._size, len(data))
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            self._wrote(os.write(fd, data), data, self._size)
        finally:
            os.close(fd)

    def _write_by_mapping(self) -> None:
        if not self._size:
            return
        offset = self._offset(self._size)
        data = self._rng.randbytes(self._length())[: self._size - offset]
        self._note("write a mapping", offset, len(data))
        with mmap.mmap(self._fd(), 0) as mapped:
            mapped[offset : offset + len(data)] = data
            if self._rng.randrange(2):
                mapped.flush()
        self._wrote(len(data), data, offset)

    def _write_past_the_pages(self) -> None:
        """Write with O_DIRECT."""
        offset = self._offset(self._limit - 16 * _PAGE) // _PAGE * _PAGE
        with mmap.mmap(-1, _PAGE * self._rng.randrange(1, 17)) as buffer:
            data = self._rng.randbytes(len(buffer))
            buffer[:] = data
            self._note("write O_DIRECT", offset, len(data))
            written = self._directly(os.O_WRONLY, lambda fd: os.pwritev(fd, [buffer], offset))
            self._wrote(written, data, offset)

    def _truncate(self) -> None:
        size = self._offset(self._limit if self._rng.randrange(2) else self._size)
        self._note("truncate", size)
        if self._rng.randrange(2):
            os.truncate(self._path, size)
        else:
            os.ftruncate(self._fd(), size)
        self._set_size(size)

    def _copy_range(self) -> None:
        source, offset, length = self._offset(self._size), self._offset(self._limit), self._length()
        if abs(source - offset) < length or offset + length > self._limit:
            return
        self._note("copy_file_range", source, length)
        copied = os.copy_file_range(self._fd(), self._fd(), length, source, offset)
        data = bytes(self._expected[source : source + length])
        if data:
            self._wrote(copied, data[:copied], offset)

    def _allocate(self) -> None:
        """Ask for each kind of allocation: it is refused, and the file is as it was."""
        mode, offset = self._rng.choice(_ALLOCATIONS), self._offset(self._size)
        self._note("fallocate", offset, _PAGE)
        refused = _libc.fallocate(self._fd(), mode, offset, _PAGE)
        self._compare(f"fallocate {mode}", (refused, ctypes.get_errno()), (-1, errno.EOPNOTSUPP))

    def _allocate_as_libraries_do(self) -> None:
        """Allocate as libc does it where the file system cannot: by writing."""
        offset, length = self._offset(self._limit - _PAGE), _PAGE
        self._note("posix_fallocate", offset, length)
        os.posix_fallocate(self._fd(), offset, length)
        self._set_size(max(self._size, offset + length))

    # What must change nothing

    def _sync(self) -> None:
        self._note("fsync")
        self._rng.choice([os.fsync, os.fdatasync])(self._fd())

    def _forget_pages(self) -> None:
        """Let the next read be the file system's own answer, not the kernel's pages."""
        self._note("forget pages")
        fd = self._fd()
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _reopen(self) -> None:
        """Close a handle or open one more."""
        self._note("reopen")
        self._open()
        if len(self._fds) > HANDLES:
            os.close(self._fds.pop(self._rng.randrange(HANDLES)))

    def _place_and_data(self, what: str) -> tuple[int, bytes]:
        offset = self._offset(self._limit)
        data = self._rng.randbytes(min(self._length(), self._limit - offset))
        self._note(what, offset, len(data))
        return offset, data

    def _directly(self, access: int, act: Callable[[int], int]) -> int:
        fd = os.open(self._path, access | os.O_DIRECT)
        try:
            return act(fd)
        finally:
            os.close(fd)

    def _wrote(self, written: int, data: bytes, offset: int) -> None:
        self._compare("bytes written", written, len(data))
        if data:
            self._set_size(max(self._size, offset))
            self._expected[offset : offset + len(data)] = data

    def _set_size(self, size: int) -> None:
        self._expected = self._expected[:size].ljust(size, b"\0")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(FileExerciser(arguments.file, arguments.seed).run(arguments.operations))


if __name__ == "__main__":
    main()
