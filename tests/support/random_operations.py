"""Random file operations, each done to a directory of a mount and to a plain local one.

A program: `python -m tests.support.random_operations MOUNTED LOCAL`, run by the tests as
each user a mount must work for, and by hand for as long as one likes (--operations).
The plain directory says what is right: the same operation has the same result or
the same errno in both, and then both hold the same tree, contents, modes, sizes,
times and link counts. Every example works in directories of its own and leaves
them, so that what was made can be frozen and compared once more.
"""

from __future__ import annotations

import argparse
import itertools
import mmap
import os
import random
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.two_sides import Failed, Side, contents_of, open_up, outcome_of, shown, tree_of

_LONG = "n" * 255
_TOO_LONG = "n" * 256
_TYPES = {True: stat.S_IFDIR, False: stat.S_IFREG}

names = st.sampled_from(["a", "b", "c", "ü 文", "-rf", _LONG])
handles = st.integers(0, 1 << 16)
# Most operations are to succeed: a number is for one of what is there then.
any_names = st.one_of(names, st.tuples(names, names).map("/".join))
existing = st.one_of(handles, handles, handles, handles, any_names)
places = st.one_of(st.tuples(handles, names), st.tuples(handles, names), existing)
Existing = int | str
Place = tuple[int, str] | int | str
Content = tuple[int, int]
# Around pages (4096), the kernel's requests (128 KiB and more) and what the daemon
# writes without a thread (32 KiB).
edges = st.sampled_from([0, 1, 4095, 4096, 4097, 32_768, 32_769, 65_536, 131_072, 140_001])
sizes = st.one_of(st.integers(0, 300), edges)
offsets = st.one_of(st.integers(0, 5000), edges, st.just(1_048_577))
contents = st.tuples(st.integers(0, 255), sizes)
file_modes = st.sampled_from([0o644, 0o600, 0o444, 0o755, 0o200, 0o000])
directory_modes = st.sampled_from([0o755, 0o700, 0o755, 0o700, 0o500, 0o300, 0o000])
accesses = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
how_to_open = st.sampled_from(
    [
        0,
        os.O_CREAT,
        os.O_CREAT,
        os.O_CREAT | os.O_EXCL,
        os.O_CREAT | os.O_TRUNC,
        os.O_TRUNC,
        os.O_CREAT | os.O_APPEND,
        os.O_APPEND,
        os.O_DIRECTORY,
    ]
)


class RandomOperations(RuleBasedStateMachine):
    """One example: a pair of directories and what is open in them."""

    mounted: Path
    local: Path
    numbers = itertools.count()
    outcomes: ClassVar[Counter[tuple[str, str]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        name = f"run-{next(self.numbers):05}"
        self._sides = [Side(f"{self.local}/{name}", []), self.make_side(name)]
        for side in self._sides:
            side.os.mkdir(side.root)
        self._times = itertools.count(1_400_000_000_123_456_789, 1_000_000_007)

    @classmethod
    def make_side(cls, name: str) -> Side:
        """Return the side beside the local one."""
        return Side(f"{cls.mounted}/{name}", [])

    @initialize(number=handles)
    def begin(self, number: int) -> None:
        for side in self._sides:
            side.os.mkdir(side.path("a"))
            side.os.mkdir(side.path("a/b"))
            for place, relpath in enumerate(("c", "a/c", "a/b/a")):
                side.fds.append(side.os.open(side.path(relpath), os.O_RDWR | os.O_CREAT))
                side.os.write(side.fds[-1], _bytes((number + place, 1 << 7 * place)))
                side.os.lseek(side.fds[-1], 0, os.SEEK_SET)

    def teardown(self) -> None:
        try:
            for side in self._sides:
                for fd in side.fds:
                    side.os.close(fd)
            local, mounted = (tree_of(side) for side in self._sides)
            assert mounted == local
            self._open_up()
            here, there = (contents_of(side) for side in self._sides)
            assert there == here
        finally:
            self._open_up()

    def _open_up(self) -> None:
        """Let everything be read, whatever modes it has."""
        for side in self._sides:
            open_up(side, side.root)

    def _both(self, operation: str, act: Callable[[Side], object]) -> None:
        """Do it on both sides, and require that both return the same, or fail with the same."""
        local, mounted = (outcome_of(act, side) for side in self._sides)
        failed = isinstance(local, Failed)
        self.outcomes[operation, str(local) if failed else "done"] += 1
        assert mounted == local, f"the mount says {mounted!r}, a local directory {local!r}"

    # What is there

    def _is_open(self) -> bool:
        return bool(self._sides[0].fds)

    def _existing(self, choice: Existing, kind: Callable[[int], bool]) -> str:
        if isinstance(choice, str):
            return choice
        found = [relpath for relpath, mode in self._entries() if kind(mode)]
        return found[choice % len(found)] if found else "nothing"

    def _file(self, choice: Existing) -> str:
        return self._existing(choice, stat.S_ISREG)

    def _directory(self, choice: Existing) -> str:
        return self._existing(choice, stat.S_ISDIR)

    def _place(self, choice: Place) -> str:
        """Return a path at which something can be made, or is."""
        if isinstance(choice, tuple):
            parents = [".", *(path for path, mode in self._entries() if stat.S_ISDIR(mode))]
            return os.path.normpath(f"{parents[choice[0] % len(parents)]}/{choice[1]}")
        return self._existing(choice, bool)

    def _entries(self) -> list[tuple[str, int]]:
        """Return relative path and type of whatever is there."""
        root = self._sides[0].root
        found, pending = [], [root]
        while pending:
            # By what the listing says: attributes may not be looked at in every directory.
            try:
                entries = list(os.scandir(pending.pop()))
            except PermissionError:
                continue
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                found.append((os.path.relpath(entry.path, root), _TYPES[is_directory]))
                if is_directory:
                    pending.append(entry.path)
        return sorted(found)

    # Handles

    @rule(place=places, access=accesses, how=how_to_open, mode=file_modes)
    def open_file(self, place: Place, access: int, how: int, mode: int) -> None:
        path = self._place(place)
        if len(self._sides[0].fds) >= 12:
            self._close(len(path))

        def act(side: Side) -> None:
            side.fds.append(side.os.open(side.path(path), access | how, mode))

        self._both("open", act)

    @precondition(_is_open)
    @rule(handle=handles)
    def close(self, handle: int) -> None:
        self._close(handle)

    def _close(self, handle: int) -> None:
        place = handle % len(self._sides[0].fds)
        self._both("close", lambda side: side.os.close(side.fds.pop(place)))

    @precondition(_is_open)
    @rule(handle=handles, content=contents)
    def write(self, handle: int, content: Content) -> None:
        self._both("write", lambda side: side.os.write(side.fd(handle), _bytes(content)))

    @precondition(_is_open)
    @rule(handle=handles, content=contents, offset=offsets)
    def pwrite(self, handle: int, content: Content, offset: int) -> None:
        self._both("pwrite", lambda side: side.os.pwrite(side.fd(handle), _bytes(content), offset))

    @precondition(_is_open)
    @rule(handle=handles, size=sizes)
    def read(self, handle: int, size: int) -> None:
        self._both("read", lambda side: side.os.read(side.fd(handle), size))

    @precondition(_is_open)
    @rule(handle=handles, size=sizes, offset=offsets)
    def pread(self, handle: int, size: int, offset: int) -> None:
        self._both("pread", lambda side: side.os.pread(side.fd(handle), size, offset))

    @precondition(_is_open)
    @rule(handle=handles, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_END]))
    def seek(self, handle: int, offset: int, whence: int) -> None:
        def act(side: Side) -> object:
            # What a directory's end is, every file system says in its own way.
            fd = side.fd(handle)
            return stat.S_ISREG(side.os.fstat(fd).st_mode) and side.os.lseek(fd, offset, whence)

        self._both("lseek", act)

    @precondition(_is_open)
    @rule(handle=handles, size=offsets)
    def truncate_open(self, handle: int, size: int) -> None:
        self._both("ftruncate", lambda side: side.os.ftruncate(side.fd(handle), size))

    @precondition(_is_open)
    @rule(handle=handles)
    def stat_open(self, handle: int) -> None:
        self._both("fstat", lambda side: shown(side.os.fstat(side.fd(handle))))

    @precondition(_is_open)
    @rule(handle=handles, mode=file_modes)
    def change_mode_of_open(self, handle: int, mode: int) -> None:
        self._both("fchmod", lambda side: side.os.fchmod(side.fd(handle), mode))

    @precondition(_is_open)
    @rule(handle=handles)
    def set_times_of_open(self, handle: int) -> None:
        time_ns = next(self._times)
        self._both("futimens", lambda side: side.os.utime(side.fd(handle), ns=(time_ns, time_ns)))

    @precondition(_is_open)
    @rule(handle=handles, sync=st.sampled_from(["fsync", "fdatasync"]))
    def sync(self, handle: int, sync: str) -> None:
        self._both("fsync", lambda side: getattr(side.os, sync)(side.fd(handle)))

    @precondition(_is_open)
    @rule(handle=handles, content=contents, offset=offsets, also=handles)
    def write_by_mmap(self, handle: int, content: Content, offset: int, also: int) -> None:
        """Write to a shared mapping, and read by another handle before it is unmapped."""

        def act(side: Side) -> object:
            fd = side.fd(handle)
            size = side.os.fstat(fd).st_size
            start = min(offset, size // 2)
            data = _bytes(content)[: size - start]
            if not data or not stat.S_ISREG(side.os.fstat(fd).st_mode):
                return None
            with mmap.mmap(fd, size) as mapped:
                mapped[start : start + len(data)] = data
                seen = outcome_of(lambda side: side.os.pread(side.fd(also), 5000, start), side)
                mapped.flush()
            return seen

        self._both("mmap", act)

    @precondition(_is_open)
    @rule(source=handles, into=handles, size=sizes, offset=offsets, to=offsets)
    def copy_range(self, source: int, into: int, size: int, offset: int, to: int) -> None:
        self._both(
            "copy_file_range",
            lambda side: side.os.copy_file_range(side.fd(source), side.fd(into), size, offset, to),
        )

    # Names

    @rule(place=places)
    def stat_path(self, place: Place) -> None:
        path = self._place(place)
        self._both("lstat", lambda side: shown(side.os.lstat(side.path(path))))

    @rule(place=places, mode=st.sampled_from([os.R_OK, os.W_OK, os.X_OK]))
    def access(self, place: Place, mode: int) -> None:
        path = self._place(place)
        self._both("access", lambda side: side.os.access(side.path(path), mode))

    @rule(directory=existing)
    def list_directory(self, directory: Existing) -> None:
        path = self._directory(directory)
        self._both("readdir", lambda side: sorted(side.os.listdir(side.path(path))))

    @rule(directory=existing, number=st.sampled_from([1, 30, 60]))
    def change_while_listing(self, directory: Existing, number: int) -> None:
        """Remove what one reading of a directory gives as it gives it, as `rm -r` does."""
        path = self._directory(directory)

        def act(side: Side) -> object:
            made = {f"many {i}" for i in range(number)}
            for name in made:
                side.touch(f"{path}/{name}")
            for entry in side.os.scandir(side.path(path)):
                if entry.name in made:
                    side.os.unlink(entry.path)
            return sorted(side.os.listdir(side.path(path)))

        self._both("rm -r", act)

    @rule(place=places, mode=directory_modes)
    def make_directory(self, place: Place, mode: int) -> None:
        path = self._place(place)
        self._both("mkdir", lambda side: side.os.mkdir(side.path(path), mode))

    @rule(directory=existing)
    def remove_directory(self, directory: Existing) -> None:
        path = self._directory(directory)
        self._both("rmdir", lambda side: side.os.rmdir(side.path(path)))

    @rule(place=existing)
    def unlink(self, place: Existing) -> None:
        path = self._file(place)
        self._both("unlink", lambda side: side.os.unlink(side.path(path)))

    @rule(place=existing, new=places)
    def rename(self, place: Existing, new: Place) -> None:
        old_path, new_path = self._place(place), self._place(new)
        self._both("rename", lambda side: side.os.rename(side.path(old_path), side.path(new_path)))

    @rule(place=existing, new=places, flags=st.sampled_from([1, 2, 2, 3]))
    def rename_with_flags(self, place: Existing, new: Place, flags: int) -> None:
        """RENAME_NOREPLACE, RENAME_EXCHANGE, and both, which is an error."""
        old_path, new_path = self._place(place), self._place(new)
        self._both(
            f"renameat2 {flags}",
            lambda side: side.renameat2(old_path, new_path, flags),
        )

    @rule(place=existing, new=places)
    def link(self, place: Existing, new: Place) -> None:
        old_path, new_path = self._file(place), self._place(new)
        self._both("link", lambda side: side.os.link(side.path(old_path), side.path(new_path)))

    @rule(place=existing, size=offsets)
    def truncate(self, place: Existing, size: int) -> None:
        path = self._file(place)
        self._both("truncate", lambda side: side.os.truncate(side.path(path), size))

    @rule(place=existing, mode=file_modes)
    def change_mode(self, place: Existing, mode: int) -> None:
        path = self._place(place)
        self._both("chmod", lambda side: side.os.chmod(side.path(path), mode))

    @rule(place=existing)
    def set_times(self, place: Existing) -> None:
        path, time_ns = self._place(place), next(self._times)
        times = (time_ns + 5, time_ns)
        self._both("utimensat", lambda side: side.os.utime(side.path(path), ns=times))

    @rule(directory=existing)
    def sync_directory(self, directory: Existing) -> None:
        path = self._directory(directory)

        def act(side: Side) -> None:
            fd = side.os.open(side.path(path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                side.os.fsync(fd)
            finally:
                side.os.close(fd)

        self._both("fsync directory", act)

    @rule(directory=existing)
    def name_that_is_too_long(self, directory: Existing) -> None:
        path = f"{self._directory(directory)}/{_TOO_LONG}"
        self._both("name too long", lambda side: side.touch(path))

    @rule(name=names, kind=st.sampled_from([stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK]))
    def what_a_dataset_cannot_hold(self, name: str, kind: int) -> None:
        """Not done to the local directory, where nothing refuses it."""
        local, mounted = self._sides
        if local.has(name):
            return

        def act(side: Side) -> None:
            if kind == stat.S_IFLNK:
                side.os.symlink("target", side.path(name))
            else:
                side.os.mknod(side.path(name), 0o600 | kind)

        assert str(outcome_of(act, mounted)) == "EPERM"
        assert not mounted.has(name)


def _bytes(content: Content) -> bytes:
    number, size = content
    return random.Random(number).randbytes(size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mounted", type=Path)
    parser.add_argument("local", type=Path)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    number = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    os.umask(0o022)
    RandomOperations.mounted, RandomOperations.local = arguments.mounted, arguments.local
    while RandomOperations.outcomes.total() < arguments.operations:
        print(f"seed {number}", flush=True)
        run_state_machine_as_test(seed(number)(RandomOperations), settings=_SETTINGS)
        number += 1
    for (operation, outcome), count in sorted(RandomOperations.outcomes.items()):
        print(f"{count:6} {operation}: {outcome}")
    print(f"{RandomOperations.outcomes.total()} operations")


_SETTINGS = settings(
    max_examples=20,
    stateful_step_count=100,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


if __name__ == "__main__":
    main()
