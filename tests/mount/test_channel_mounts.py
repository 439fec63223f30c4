"""Mounts with a channel: what it answers, how it ends, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base import child_processes
from dserverfs.base.checksums import CHUNK_BYTES
from dserverfs.base.errors import UsageError
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.mountinfo import find_mounted
from dserverfs.mount import daemon
from dserverfs.mount.channel import messages
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import (
    Remountable,
    channel_of,
    remountable,
    stopped,
    wait_for,
    wait_for_end,
)
from tests.support.mounts import publish
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle

SIZE = 5 * BLOCK_SIZE + 4321
CONTENT = content_of("channel", SIZE)
# The start of a channel on a kernel that has no pidfd_open, and what is no channel at all.
NO_PIDFD = """
import os, sys
from dserverfs.mount.channel.__main__ import main
del os.pidfd_open
main(*map(int, sys.argv[1:]))
"""
NO_CHANNEL = "raise SystemExit"
# A mount that libfuse does not want.
NO_LIBFUSE = """
import sys
import pyfuse3
from dserverfs.cli.main import main
def fail(*_):
    raise RuntimeError("fuse_session_new failed")
pyfuse3.init = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("channel")
    local = make_dataset(directory, "warm", {"large": CONTENT, "small": b"small\n"})
    return publish(server.base_uri, token, directory / "cache", local)[0]


@pytest.fixture
def mount(fuse: None, current_user: Account, token: str, uri: str) -> Iterator[Remountable]:
    with remountable(current_user, uri, {"DSERVER_TOKEN": token}) as made:
        made.mount("--channel", "on")
        yield made


def answered(mount: Remountable) -> int:
    """Return how many reads the channel has answered."""
    text = (mount.path / ".dserverfs/stats").read_text()
    match = re.search(r'item_reads_total\{found="channel"\} (\d+)', text)
    assert match is not None
    return int(match[1])


def forget_pages(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_at_random(path: Path, times: int, seed: int) -> None:
    """Require the right bytes at places all over a file, none of them from the page cache."""
    rng = random.Random(seed)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(times):
            forget_pages(file.fileno())
            offset, size = rng.randrange(SIZE), rng.choice([1, 100, 4096, 200_000])
            assert os.pread(file.fileno(), size, offset) == CONTENT[offset : offset + size]


def test_warm_reads_are_answered_by_the_channel_with_the_right_bytes(mount: Remountable) -> None:
    path = mount.path / "data/large"
    assert path.read_bytes() == CONTENT

    def is_answered() -> bool:
        before = answered(mount)
        read_at_random(path, 200, 1)
        return answered(mount) >= before + 150

    # The cache is written behind the readers; a block in memory is the daemon's to read.
    wait_for(is_answered, "that all blocks are in files")
    before = answered(mount)
    read_at_random(path, 200, 2)

    assert answered(mount) >= before + 150  # the others are at the end
    assert (mount.path / "data/small").read_bytes() == b"small\n"


def test_bytes_that_turn_out_wrong_are_not_answered_any_more(
    mount: Remountable, current_user: Account
) -> None:
    path = mount.path / "data/large"
    assert path.read_bytes() == CONTENT
    read_at_random(path, 100, 3)

    assert current_user.dserverfs("cache", "clear").returncode == 0
    read_at_random(path, 100, 4)


def test_chunk_that_is_damaged_after_the_daemon_compared_it_is_fetched_anew(
    mount: Remountable, current_user: Account
) -> None:
    """The channel compares it for itself, and has the daemon do so once more."""
    path, place = mount.path / "data/large", CHUNK_BYTES + 100  # in the second chunk
    assert path.read_bytes() == CONTENT
    assert current_user.dserverfs("umount", mount.path).returncode == 0
    mount.mount("--channel", "on")
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 10, place) == CONTENT[place:][:10]  # the daemon's
        before = answered(mount)

        def is_told() -> bool:
            forget_pages(file.fileno())
            os.pread(file.fileno(), 10, 5 * CHUNK_BYTES)
            return answered(mount) > before

        wait_for(is_told, "that the channel has the block")
        assert damage(current_user.home / ".cache/dserverfs/blocks", place) > 0
        forget_pages(file.fileno())

        assert os.pread(file.fileno(), 10, place) == CONTENT[place:][:10]
        forget_pages(file.fileno())
        assert os.pread(file.fileno(), 10, place) == CONTENT[place:][:10]


def damage(blocks: Path, place: int) -> int:
    """Flip a bit there of each block that has a file; return of how many."""
    files = [each for each in blocks.rglob("*.blk") if each.stat().st_size > place]
    for each in files:
        start = int(each.stem.rpartition("-")[2], 16) + place
        with each.open("r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, start)
            if byte:
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), start)
    return len(files)


def test_reads_of_a_traced_program_are_all_noted(
    mount: Remountable, current_user: Account, tmp_path: Path
) -> None:
    path, trace = mount.path / "data/large", current_user.home / "channel.trace"
    assert path.read_bytes() == CONTENT
    read_at_random(path, 100, 5)

    done = current_user.dserverfs("trace", "-o", trace, "--", "md5sum", path)

    assert done.returncode == 0, done.stderr
    assert f'"ranges": [[0, {SIZE}]]' in trace.read_text()


def test_dataset_is_made_and_frozen(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as mount:
        mount.mount("--channel", "on", "--freeze-delay", "manual")
        made = mount.path / "made-by-channel"
        made.mkdir()
        (made / "large").write_bytes(CONTENT)
        with (made / "appended").open("ab", buffering=0) as file:
            for start in range(0, len(CONTENT), 3 * BLOCK_SIZE):
                file.write(CONTENT[start : start + 3 * BLOCK_SIZE])
        assert current_user.dserverfs("freeze", made).returncode == 0
        for name in ("large", "appended"):
            assert (made / "data" / name).read_bytes() == CONTENT
            read_at_random(made / "data" / name, 50, 6)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda each: each.name)
def test_end_of_the_channel_is_the_end_of_the_mount(
    mount: Remountable, number: signal.Signals
) -> None:
    pid = mount.daemon()
    channel = channel_of(pid)
    assert channel is not None

    os.kill(channel, number)

    if number == signal.SIGTERM:  # it is the daemon's to end
        assert (mount.path / "data/small").read_bytes() == b"small\n"
        os.kill(channel, signal.SIGKILL)
    wait_for_end(pid)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.listdir(mount.path)


def test_channel_ends_with_a_daemon_that_ends_the_mount(mount: Remountable) -> None:
    pid = mount.daemon()
    channel = channel_of(pid)
    assert channel is not None
    fd = os.open(mount.path / "data/large", os.O_RDONLY)
    os.read(fd, 10)

    mount.end(signal.SIGTERM)

    wait_for_end(channel)
    with contextlib.suppress(OSError):  # there is nobody any more who could be told
        os.close(fd)
    assert find_mounted(mount.path) is None


def test_processes_are_shown_under_names_of_their_own(mount: Remountable) -> None:
    daemon, channel = mount.daemon(), channel_of(mount.daemon())
    assert channel is not None
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (daemon, channel)]

    assert names == ["dserverfs", "dserverfs-chan"]


def test_unmounting_leaves_no_process(mount: Remountable, current_user: Account) -> None:
    pid = mount.daemon()
    channel = channel_of(pid)
    assert channel is not None

    done = current_user.dserverfs("umount", mount.path)

    assert (done.returncode, done.stderr) == (0, "")
    wait_for_end(pid)
    wait_for_end(channel)


@pytest.mark.expects_log("mounted without a channel, which cannot be started")
def test_channel_that_cannot_be_started_is_left_out_or_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(messages.Shared, "create", fail)

    assert daemon.started_channel("off") is None
    assert daemon.started_channel("auto") is None
    with pytest.raises(UsageError, match=r"--channel on: the channel cannot be started: .*files"):
        daemon.started_channel("on")


@pytest.mark.expects_log("mounted without a channel, which cannot be started")
@pytest.mark.parametrize(
    ("program", "said"),
    [(NO_CHANNEL, "does not begin to serve"), (NO_PIDFD, "no attribute 'pidfd_open'")],
)
def test_channel_that_does_not_begin_to_serve_is_left_out_or_an_error(
    monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    command = [sys.executable, "-c", program]
    monkeypatch.setattr(child_processes, "module_command", lambda _, *fds: [*command, *fds])

    for wanted in ("auto", "on"):
        started = daemon.started_channel(wanted)
        assert started is not None
        if wanted == "auto":
            assert daemon.serving_channel(started, wanted) is None
        else:
            with pytest.raises(UsageError, match=f"--channel on: .* be started: .*{said}"):
                daemon.serving_channel(started, wanted)
        started._running.wait(LATE_S)


@pytest.mark.parametrize("options", [["--channel", "on"], ["--channel", "on", "-f"], ["-f"]])
def test_mount_that_libfuse_refuses_is_not_left_there_dead(
    fuse: None, current_user: Account, token: str, uri: str, options: list[str]
) -> None:
    command = [sys.executable, "-c", NO_LIBFUSE, "mount", *options, uri]
    with remountable(current_user, uri, {}) as mount:
        done = current_user.run(*command, mount.path, env={"DSERVER_TOKEN": token})

        said = f"dserverfs: {mount.path}: cannot be mounted: fuse_session_new failed\n"
        assert (done.returncode, done.stderr) == (1, said)
        assert find_mounted(mount.path) is None


@pytest.mark.parametrize("command", [["stat", "--file-system"], ["stat", "--cached=never"]])
def test_who_asks_a_daemon_that_does_not_answer_can_be_killed(
    mount: Remountable, command: list[str]
) -> None:
    with stopped(mount.daemon()):
        asking = subprocess.Popen([*command, mount.path])
        try:
            waits = Path(f"/proc/{asking.pid}/wchan")
            wait_for(lambda: "request_wait" in waits.read_text(), "that it waits for an answer")
        finally:
            asking.kill()

        assert asking.wait(LATE_S) == -signal.SIGKILL
