"""When a dataset in a mount is frozen by itself: not before those who write to it have ended."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.mountinfo import find_mounted
from dserverfs.base.processes import Processes
from dserverfs.writing.freeze_schedule import Schedule
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.dataset import PAUSES, StagedDataset
from dserverfs.writing.staging.writers import Writers
from tests.support.accounts import Account
from tests.support.mount_daemons import wait_for
from tests.support.mounts import detach, mounted
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze, status, wait_until

DELAY_S = 0.05


@pytest.fixture(scope="module")
def base(fuse: None, current_user: Account, server: ServerHandle, token: str) -> Iterator[Path]:
    """The base URI, in which datasets are frozen soon."""
    with mounted(current_user, server.base_uri, token, "--freeze-delay", str(DELAY_S)) as path:
        yield path


@contextlib.contextmanager
def running(*command: str | Path, cwd: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a job that has a session of its own, and waits for lines on its standard input."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, start_new_session=True, cwd=cwd
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[bytes]) -> None:
    """Tell it that its standard input is over, for which it waits."""
    process.communicate(b"", timeout=60)


def require_open_for_a_while(account: Account, dataset: Path) -> str:
    """Require that it stays open for longer than nothing may change in it; return why."""
    end_s = time.monotonic() + 10 * DELAY_S
    while time.monotonic() < end_s:
        found = status(account, dataset)
        assert (found["state"], found["armed"]) == ("open", True), found
    return str(found["waits_for"])


WRITES_AND_STAYS = 'mkdir "$1"; echo x > "$1/x"; read line || true'
JOB = """
echo x > source
mkdir "$1"
for step in 1 2 3 4 5 6 7 8 9 10; do
    cp source "$1/$step"
    sleep 0.15
done
"""


def test_job_that_pauses_ten_times_is_frozen_whole(
    base: Path, current_user: Account, tmp_path: Path
) -> None:
    """The script writes nothing itself, and its programs end before each pause."""
    dataset = base / "job-with-pauses"

    with running("sh", "-euc", JOB, "sh", dataset, cwd=tmp_path) as job:
        assert job.wait(60) == 0

    wait_until(current_user, dataset, state="frozen")
    assert sorted(os.listdir(dataset / "data"), key=int) == [str(n) for n in range(1, 11)]


def test_process_that_wrote_is_named_until_it_ends(base: Path, current_user: Account) -> None:
    """As the kernel of a notebook: it leads a session, and has no terminal."""
    dataset = base / "written-by-a-kernel"
    with running("sh", "-euc", WRITES_AND_STAYS, "sh", dataset) as kernel:
        wait_for((dataset / "x").exists, "a file")

        said = require_open_for_a_while(current_user, dataset)

        assert said == (
            f"sh (pid {kernel.pid}), which wrote to it, still runs;"
            " dserverfs freeze DIR freezes it now"
        )
        assert said in current_user.dserverfs("status").stdout
        end(kernel)
    wait_until(current_user, dataset, state="frozen")


def test_command_freezes_what_a_daemon_wrote(base: Path, current_user: Account) -> None:
    dataset = base / "written-by-a-daemon"
    with running("sh", "-euc", WRITES_AND_STAYS, "sh", dataset):
        wait_for((dataset / "x").exists, "a file")
        require_open_for_a_while(current_user, dataset)

        freeze(current_user, dataset)

    assert (dataset / "data/x").read_text() == "x\n"


def test_shell_that_is_typed_into_is_not_waited_for_but_its_loop_is(
    base: Path, current_user: Account
) -> None:
    by_shell, by_loop = base / "by-shell-itself", base / "by-a-typed-loop"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PS1"] = "$ "
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        os.write(terminal, f"mkdir {by_shell}; echo x > {by_shell}/x\n".encode())
        wait_for((by_shell / "x").exists, "a file")
        wait_until(current_user, by_shell, state="frozen")

        fifo = current_user.home / "loop"
        os.mkfifo(fifo)
        line = f"mkdir {by_loop}; for i in 1 2; do cp /etc/hostname {by_loop}/$i; cat {fifo}; done"
        os.write(terminal, f"{line}\n".encode())
        wait_for((by_loop / "1").exists, "a file")
        said = require_open_for_a_while(current_user, by_loop)
        assert f"bash (pid {pid})" in said
        fifo.write_text("")
        wait_for((by_loop / "2").exists, "another file")
        fifo.write_text("")
        wait_until(current_user, by_loop, state="frozen")
        assert sorted(os.listdir(by_loop / "data")) == ["1", "2"]
    finally:
        os.close(terminal)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_umount_leaves_what_others_still_write_and_freezes_what_its_own_script_wrote(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "3600") as path:
        others, own = path / "others-write", path / "own-script"
        with running("sh", "-euc", WRITES_AND_STAYS, "sh", others) as job:
            wait_for((others / "x").exists, "a file")
            script = 'mkdir "$1" "$1/empty"; cp /etc/hostname "$1/x"; shift; "$@"; true'
            done = current_user.run(
                *("setsid", "--wait", "sh", "-euc", script, "sh", own),
                *(current_user.python, "-m", "dserverfs", "umount", path),
            )

            assert find_mounted(path) is None
            assert f"others-write (open): sh (pid {job.pid}), which wrote to it" in done.stderr
            assert "own-script (" not in done.stderr
            assert (
                "note: own-script: not kept in the dataset: empty directories: empty" in done.stderr
            )
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "0") as path:
        assert status(current_user, path / "own-script")["state"] == "frozen"
        found = status(current_user, path / "others-write")
        assert (found["state"], found["armed"]) == ("open", False)
        assert "when its mount ended" in found["reason"]
        freeze(current_user, path / "others-write")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a pid namespace")
def test_who_writes_from_another_pid_namespace_is_unknown_and_only_the_pauses_count(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    path = current_user.home / "mnt-of-a-container"
    path.mkdir()
    options = ("mount", "-f", "--freeze-delay", str(DELAY_S), server.base_uri, path)
    apart = ("unshare", "--pid", "--fork", "--kill-child")
    with subprocess.Popen(
        [*apart, *current_user.dserverfs_command(*options)],
        env={**current_user.environment, "DSERVER_TOKEN": token},
    ) as process:
        try:
            wait_for(lambda: find_mounted(path) is not None, "a mount")
            dataset = path / "written-from-outside"
            dataset.mkdir()
            (dataset / "x").write_text("x")

            wait_until(current_user, dataset, state="frozen")
        finally:
            process.terminate()
            detach(path)


class World:
    """A staged dataset and its time."""

    def __init__(self, directory: Path) -> None:
        self.now_s = 0.0
        staging = Staging(directory, "host", clock_s=lambda: self.now_s).open()
        self.staged: StagedDataset = staging.create("s3://bucket", "name", "somebody")
        self.staged.written_by = Writers(Processes(directory))  # in which there are none

    def write(self) -> None:
        with self.staged.changing():
            self.staged.writer_opened()
        self.staged.writer_closed()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "staging")
    yield world
    world.staged.disown()


@pytest.mark.parametrize("pause_s", [0.0, 1.0, 7.0, 8.0, 600.0])
def test_it_settles_after_the_delay_or_four_times_its_longest_pause(
    world: World, pause_s: float
) -> None:
    world.write()
    world.now_s += pause_s
    world.write()
    world.now_s += pause_s / 2
    world.write()

    settles_s = max(30.0, PAUSES * pause_s)
    assert world.staged.settles_in_s(30.0) == settles_s
    world.now_s += settles_s - 1
    assert world.staged.settles_in_s(30.0) == 1
    assert Schedule(30.0).due_in_s(world.staged) == 1


def test_time_before_there_is_anything_in_it_is_no_pause(world: World) -> None:
    with world.staged.changing():
        pass  # mkdir, and a meal
    world.now_s += 3600
    world.write()

    assert world.staged.settles_in_s(30.0) == 30


def test_who_is_unknown_counts_by_the_pauses_also_at_the_end(world: World) -> None:
    schedule = Schedule(30.0)
    world.write()
    assert schedule.may_be_complete(world.staged)

    world.staged.written_by.wrote(0)

    assert not schedule.may_be_complete(world.staged)
    world.now_s += 30
    assert schedule.may_be_complete(world.staged)


def test_pause_is_told(world: World) -> None:
    schedule = Schedule(30.0)
    world.write()
    assert schedule.waits_for(world.staged) == (
        "it is frozen 30 s after its last change, in 30 s; dserverfs freeze DIR freezes it now"
    )
    world.now_s += 100
    world.write()
    world.now_s += 50

    assert schedule.waits_for(world.staged) == (
        "it is frozen 400 s, 4 times its longest pause so far, after its last change, in 350 s;"
        " dserverfs freeze DIR freezes it now"
    )
    world.now_s += 350
    assert schedule.waits_for(world.staged) is None
    assert Schedule(None).waits_for(world.staged) is None
