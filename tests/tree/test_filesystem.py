"""The file system without a kernel: it does what a local directory does, and notes what failed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from dserverfs.base.errors import CannotHold, Frozen, NameTaken
from dserverfs.base.model import DserverURI
from dserverfs.tree.attributes import Changes
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.mount_tree import ROOT, Inode, Tree
from dserverfs.tree.refusals import (
    AcrossDatasets,
    NotADirectory,
    NotEmpty,
    NotOpenForWriting,
    NotPermitted,
    StillGoingOn,
)
from dserverfs.tree.steps import Limit, TookTooLong, WouldBlock
from dserverfs.tree.write_latency import WriteLatency
from dserverfs.writing.staging.dataset import StagedDataset
from tests.support.file_system_calls import THREAD, FileSystemCalls, finish
from tests.support.kernel_questions import client_for
from tests.support.quirky_server import BASE_URI, TOKEN, quirky_server
from tests.support.random_operations import RandomOperations
from tests.support.two_sides import Side

EXAMPLES, STEPS = 20, 100
SEED = 5


class Mount:
    """A file system on a client of its own, with a dataset that is being made."""

    def __init__(self, url: str, directory: Path, stack: contextlib.ExitStack) -> None:
        uri = DserverURI(url.removeprefix("http://"), BASE_URI)
        client = stack.enter_context(client_for(uri, TOKEN, directory))
        self.freezer = client.freezer
        self.given_way: list[int] = []
        staging = client.staging.open()
        tree = Tree(uri, client.catalogue, 0, staging)
        self.disk_is_quick = True
        latency = WriteLatency(lambda: 0.0 if self.disk_is_quick else -1.0)
        self.fs = FileSystem(tree, client.freezer, self._give_way, staging=staging, latency=latency)
        self.dataset = self.make("made")
        place = tree.locate(self.dataset)
        assert place.staged is not None
        self.staged: StagedDataset = place.staged.staged

    def make(self, name: str) -> Inode:
        return Inode(finish(self.fs.mkdir(ROOT, name.encode(), 0o755, THREAD)).number)

    def create(self, name: str) -> Any:
        return finish(self.fs.create(self.dataset, name.encode(), 0o644, os.O_RDWR, THREAD))[0]

    def _give_way(self, size_in_bytes: int) -> bool:
        self.given_way.append(size_in_bytes)
        return True


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with quirky_server() as server, contextlib.ExitStack() as stack:
        server.register = [BASE_URI]
        yield Mount(server.url, tmp_path / "client", stack)


class WithoutMount(RandomOperations):
    """The operations that need no kernel; what it does alone, `mount` tests."""

    calls: ClassVar[FileSystemCalls]
    # Of the kernel's: it maps memory, copies between files, and says who may do what.
    write_by_mmap = copy_range = access = None  # type: ignore[assignment]

    @classmethod
    def make_side(cls, name: str) -> Side:
        return Side(f"/{name}", [], cls.calls)


@pytest.mark.skipif(os.geteuid() != 0, reason="permissions are the kernel's: root has them all")
@pytest.mark.expects_log("frozen only by command: refused: .* is a")
def test_random_operations_do_what_they_do_in_a_local_directory(
    mount: Mount, tmp_path: Path
) -> None:
    WithoutMount.calls = FileSystemCalls(mount.fs, mount.dataset)
    WithoutMount.local = tmp_path / "local"
    WithoutMount.local.mkdir()
    umask = os.umask(0o022)
    try:
        run_state_machine_as_test(
            seed(SEED)(WithoutMount),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        os.umask(umask)
    assert WithoutMount.outcomes.total() > EXAMPLES * STEPS / 2


@pytest.mark.expects_log("frozen only by command: writing /?a: Connection timed out")
def test_write_that_takes_too_long_disarms_its_dataset(mount: Mount) -> None:
    file = mount.create("a")
    mount.disk_is_quick = False
    steps = file.write(0, bytes(1 << 20))

    waits_for = next(steps)
    noted = steps.throw(TookTooLong("too slow"))
    waits_for.call()  # the disk goes on in its own time
    noted.call()
    with pytest.raises(TookTooLong):
        steps.send(None)
    file.close()

    assert waits_for.limit is Limit.WRITE
    assert noted.limit is Limit.DISK
    assert not mount.staged.record.armed


def failing_once(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the next write to a local file fail."""
    write, numbers = os.pwrite, [number]

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if numbers:
            raise OSError(numbers.pop(), "failed")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def test_full_disk_has_the_cache_give_way(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    file = mount.create("a")
    failing_once(monkeypatch, errno.ENOSPC)

    assert finish(file.write(0, b"content")) == 7
    assert finish(file.read(0, 7)) == b"content"
    file.close()

    assert mount.given_way == [7]
    assert mount.staged.record.armed


@pytest.mark.expects_log("frozen only by command: writing /?a: Input/output error")
def test_write_that_fails_disarms_its_dataset(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = mount.create("a")
    failing_once(monkeypatch, errno.EIO)

    with pytest.raises(OSError, match="failed"):
        finish(file.write(0, b"content"))
    file.close()

    assert mount.given_way == []
    assert not mount.staged.record.armed


@pytest.mark.expects_log("frozen only by command: refused: a is a symbolic link")
def test_link_is_refused_and_disarms(mount: Mount) -> None:
    with pytest.raises(CannotHold):
        finish(mount.fs.symlink(mount.dataset, b"a", b"target", THREAD))

    assert not mount.staged.record.armed


def test_link_that_is_only_tried_leaves_it_armed(mount: Mount) -> None:
    with pytest.raises(NotPermitted):
        finish(mount.fs.symlink(mount.dataset, b".#a", b"me@host", THREAD))

    assert mount.staged.record.armed


REFUSED: dict[str, tuple[type[Exception], Callable[[Mount], Any]]] = {
    "file beside datasets": (
        NotPermitted,
        lambda mount: mount.fs.create(ROOT, b"a", 0o644, os.O_RDWR, THREAD),
    ),
    "dataset of a name that is taken": (
        NameTaken,
        lambda mount: mount.fs.mkdir(ROOT, b"made", 0o755, THREAD),
    ),
    "dataset that is not empty": (NotEmpty, lambda mount: mount.fs.rmdir(ROOT, b"made", THREAD)),
    "file that becomes a dataset": (
        AcrossDatasets,
        lambda mount: mount.fs.rename(mount.dataset, b"there", ROOT, b"new", 0, THREAD),
    ),
    "file that moves to another dataset": (
        AcrossDatasets,
        lambda mount: mount.fs.rename(
            mount.dataset, b"there", mount.make("other"), b"there", 0, THREAD
        ),
    ),
    "directory above datasets": (
        Frozen,
        lambda mount: mount.fs.setattr(ROOT, Changes(mode=0o700), None, THREAD),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused(mount: Mount, what: str) -> None:
    kind, ask = REFUSED[what]
    mount.create("there").close()

    with pytest.raises(kind):
        finish(ask(mount))


def test_handle_for_reading_is_not_written_to(mount: Mount) -> None:
    mount.create("a").close()
    inode = Inode(mount.fs.lookup(mount.dataset, b"a", THREAD).number)
    file: Any = finish(mount.fs.open(inode, os.O_RDONLY, THREAD))

    with pytest.raises(NotOpenForWriting):
        finish(file.write(0, b"content"))
    with pytest.raises(NotADirectory):
        mount.fs.opendir(inode)
    file.close()


def test_freeze_that_takes_long_goes_on(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount.freezer, "freeze", lambda staged: Future())
    steps = mount.fs.setxattr(mount.dataset, b"user.dserverfs.freeze", b"1")

    step = next(steps)

    assert isinstance(step, WouldBlock)
    assert step.limit is Limit.FREEZE
    with pytest.raises(StillGoingOn):
        steps.throw(TookTooLong("too slow"))
