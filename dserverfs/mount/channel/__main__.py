"""The start of the channel's process."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import traceback

from dserverfs.base import core_dumps, end_signals
from dserverfs.base.process_name import set_process_name
from dserverfs.mount.channel import messages
from dserverfs.mount.channel.messages import Kind, Shared, Sockets
from dserverfs.mount.channel.process import Channel
from dserverfs.mount.channel.succession import Succession

PROCESS_NAME = "dserverfs-chan"


def main(*fds: int) -> None:
    """Be the channel; the daemon alone ends it, for it goes on while there are requests.

    `fds` are those of the sockets and of the shared memory.
    """
    for number in end_signals.NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    set_process_name(PROCESS_NAME)
    *sockets, memory = fds
    ends = Sockets(*(socket.socket(fileno=fd) for fd in sockets))
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        succession = Succession(memory, os.pidfd_open(os.getppid()))
        core_dumps.hide()  # it is told the daemon's environment
        gc.freeze()
        gc.disable()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        channel = Channel(ends, Shared(memory), succession)
        ends.messages.send(messages.KIND.pack(Kind.READY))
    except BaseException:
        ends.messages.send(_fault())
        raise
    try:
        channel.run()
    except BaseException:
        channel.say(_fault())
        raise
    finally:
        channel.close()


def _fault() -> bytes:
    """Return the message that says what is raised."""
    said = traceback.format_exc()[-messages.MAX_FAILED_BYTES :].encode("utf-8", "replace")
    return messages.KIND.pack(Kind.FAILED) + said


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
