"""Starting the mount daemon and ending it, from the command's own process.

The daemon is a fork of the command, which has imported nothing yet but what reads
its arguments and has one thread: to execute Python anew takes 0.1 s more. On a pipe
it says that the mount answers. Imports nothing heavy: the command does not need
what the daemon needs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, NoReturn

from dserverfs.base import mountinfo
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.hashes import Policy
from dserverfs.base.model import DserverURI
from dserverfs.mount import mountpoint

READY_TIMEOUT_S = 90.0
READY = b"ready\n"
END_TIMEOUT_S = 5.0
# Before it is looked who else has the mount. A daemon ends within 0.1 s, but a mount namespace of a
# command that takes some seconds has copies of all mounts as long.
LETTING_GO_S = 10.0
CLOSING_S = 15.0  # a daemon that was unmounted may send and close for so long, at least


class MountOptions(NamedTuple):
    """The options of `dserverfs mount`."""

    uri: DserverURI
    path: Path
    cache_directory: Path | None
    cache_size: int | None
    umask: int
    uid: int
    gid: int
    allow_other: bool
    fuse_options: tuple[str, ...]
    verify: Policy
    staging_directory: Path | None = None
    read_only: bool = False
    freeze_delay_s: float | None = None  # None: only by command
    xattr: bool = False
    metrics_at: tuple[str, int] | None = None  # host and port
    given: int | None = None  # the descriptor of a device that is mounted already
    # Whether a process of its own answers what it can: `on`, `off`, or `auto` if it can be started.
    channel: str = "off"
    # With a channel: the command that starts another daemon, if one is to follow; and its log.
    successor: tuple[str, ...] = ()
    log: str | None = None


def start(serve: Callable[[int], int], kept: Collection[int] = ()) -> None:
    """Run `serve` as a daemon; return when it has written READY to the descriptor it is given.

    Its result is the daemon's exit status. The daemon keeps the descriptors `kept`. Raises
    UsageError with what the daemon said if it ends before, or is not ready within
    READY_TIMEOUT_S. Only for a process with one thread.
    """
    sys.stdout.flush()
    ready_read, ready_write = os.pipe()
    said_read, said_write = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        _be_daemon(serve, ready_write, said_write, kept)
    os.close(ready_write)
    os.close(said_write)
    try:
        with os.fdopen(ready_read, "rb") as ready, os.fdopen(said_read, "rb") as said:
            answered, _, _ = select.select([ready], [], [], READY_TIMEOUT_S)
            if answered and ready.readline() == READY:
                return
            if not answered:
                raise UsageError(f"not mounted: no answer within {READY_TIMEOUT_S:.0f} s")
            text = said.read()
        status = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
        daemon = 0
        raise UsageError(_message(text, status))
    except BaseException:
        if daemon:
            _end(daemon)
        raise


def _message(said: bytes, status: int) -> str:
    """Return in one line why the daemon ended, from what it and fusermount3 said."""
    lines = said.decode("utf-8", "replace").strip().split("\n")
    message = lines[-1].removeprefix("dserverfs: ") or f"the daemon ended with status {status}"
    # The last line is ours; those of fusermount3 and libfuse before it have the reason.
    reasons = [line for line in lines[:-1] if line.startswith(("fuse", "mount"))]
    return "; ".join([message, *reasons])


def _end(daemon: int) -> None:
    """End a daemon that shall not mount after all."""
    os.kill(daemon, signal.SIGTERM)
    end_s = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < end_s:
        if os.waitpid(daemon, os.WNOHANG)[0]:
            return
        time.sleep(0.02)
    os.kill(daemon, signal.SIGKILL)
    os.waitpid(daemon, 0)


def _be_daemon(
    serve: Callable[[int], int], ready_fd: int, stderr_fd: int, kept: Collection[int]
) -> NoReturn:
    """Leave the terminal and the descriptors of the caller, and serve."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in ((null, 0), (null, 1), (stderr_fd, 2)):
            os.dup2(source, target)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (ready_fd, *kept):
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(int(name))
        status = serve(ready_fd)
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
    except BaseException:  # noqa: BLE001  # the top of a process
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def stop(path: Path, timeout_s: float, daemon: int | None = None) -> None:
    """Unmount `path`; return when the daemon has let go of it, and has ended if `daemon` is given.

    `daemon` is a pidfd of it. Until it has ended it holds its locks: the next mount would find
    what is staged, and what is not sent, in the hands of another. Raises UsageError.
    """
    mounted = mountinfo.find_mounted(path)
    if mounted is None or mounted.fstype != mountinfo.FSTYPE:
        raise UsageError(f"{path}: no dserverfs is mounted there")
    if mountpoint.is_dead(path):
        mountpoint.detach(path)
        return
    mountpoint.unmount(path)
    end_s = time.monotonic() + timeout_s
    while mountinfo.find_mounted(path) == mounted:
        if time.monotonic() >= end_s:
            raise UsageError(f"{path}: still mounted after {timeout_s:.0f} s")
        time.sleep(0.05)
    if daemon is None or _has_ended(daemon, LETTING_GO_S):
        return
    if (where := mountinfo.where_else(mounted.device)) is not None:
        raise UsageError(
            f"{path}: unmounted, and still mounted {where}: until that ends, its daemon goes on,"
            " and keeps what is staged and not sent from the next mount"
        )
    closing_s = max(end_s - time.monotonic(), CLOSING_S)
    if not _has_ended(daemon, closing_s):
        raise UsageError(
            f"{path}: unmounted, but its daemon is at work still after {closing_s:.0f} s;"
            " what it has not sent is kept, and the next mount sends it"
        )


def _has_ended(daemon: int, timeout_s: float) -> bool:
    """Return whether a process has ended, for which it waits so long; `daemon` is its pidfd."""
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
