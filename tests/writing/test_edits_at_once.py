"""Edits of one dataset by several programs at once, with a server that comes and goes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable

import pytest

from dserverfs.base.errors import DserverfsError
from dserverfs.writing.edits.local_file import EditHandle
from tests.support.editing import README, WAIT_S, Bench, away

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

TEMPORARY = ["README.yml~", ".scratch", ".dtool/annotations/.x"]
NAMES = [README, ".dtool/annotations/n.json", ".dtool/annotations/m.json", *TEMPORARY]
PROGRAMS = 4
STEPS = 100


class Program:
    """A program that does one thing after the other; each is done, or refused as it should be."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self._bench = bench
        self._random = random.Random(seed)
        self._handles: list[EditHandle] = []
        self.faults: list[OSError] = []

    def run(self) -> None:
        does: list[Callable[[], None]] = [
            *(self._write, self._create, self._rename, self._remove),
            *(self._sync, self._close, self._look, self._discard, self._go_away),
        ]
        for _ in range(STEPS):
            try:
                self._random.choice(does)()
            except (DserverfsError, FileExistsError):
                pass
            except OSError as error:
                if error.errno != errno.EBUSY:  # somebody writes what is to be renamed
                    self.faults.append(error)
        while self._handles:
            self._close()

    def _path(self) -> str:
        return self._random.choice(NAMES)

    def _write(self) -> None:
        self._fill(self._bench.open(self._path()))

    def _create(self) -> None:
        self._fill(self._bench.create(self._path()))

    def _fill(self, handle: EditHandle) -> None:
        self._handles.append(handle)
        self._bench.edits.truncate(handle, 0)
        self._bench.edits.write(handle, str(self._random.randrange(10**6)).encode(), 0)

    def _rename(self) -> None:
        self._bench.rename(self._path(), self._path())

    def _remove(self) -> None:
        self._bench.remove(self._path())

    def _sync(self) -> None:
        if self._handles:
            self._bench.edits.sync(self._random.choice(self._handles))

    def _close(self) -> None:
        if self._handles:
            place = self._random.randrange(len(self._handles))
            self._bench.edits.release(self._handles.pop(place))

    def _look(self) -> None:
        for directory in ("", ".dtool/annotations"):
            self._bench.names(directory)

    def _discard(self) -> None:
        self._bench.edits.discard(self._bench.dataset, self._path())

    def _go_away(self) -> None:
        self._bench.writes.error = self._random.choice([away(), None, None])


@pytest.mark.expects_log("could not be sent")
@pytest.mark.parametrize("seed", range(3))
def test_edits_at_once_end_in_what_the_server_has_and_leave_nothing(
    bench: Bench, seed: int
) -> None:
    bench.edits.close()
    bench.mount(retry_s=(0.01, 0.05))
    bench.writes.error = away()
    bench.write(README, b"first: 1\n")
    programs = [Program(bench, seed * PROGRAMS + number) for number in range(PROGRAMS)]
    threads = [threading.Thread(target=program.run) for program in programs]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * WAIT_S)
    bench.writes.error = None
    bench.edits.flush(WAIT_S)

    assert [program.faults for program in programs] == [[]] * PROGRAMS
    for path in TEMPORARY:
        with contextlib.suppress(DserverfsError):
            bench.remove(path)
    assert [one.note for one in bench.edits.unsent()] == []
    assert bench.local_files() == []
    assert bench.shows(README) == bench.has("readme").encode()
    assert bench.names(".dtool/annotations") == sorted(
        f"{name}.json" for name in bench.has("annotations")
    )
    handle = bench.create(".scratch", flags=os.O_RDWR)  # all the room is there again
    bench.edits.truncate(handle, 16 << 20)
    bench.edits.release(handle)
