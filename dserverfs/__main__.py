"""Where the program begins: the command `dserverfs`, and `python -m dserverfs`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command that the arguments name; return the exit status."""
    at_start = signal.getsignal(signal.SIGINT)
    if at_start is signal.default_int_handler:
        # Ctrl-C while modules are imported ends the process and shows nobody a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dserverfs.base import utf8_names

    if not utf8_names.are_read():
        from dserverfs.base import child_processes

        child_processes.begin_anew_with_utf8_names()
    from dserverfs.cli import main as cli

    signal.signal(signal.SIGINT, at_start)
    status = cli.main()
    if status == cli.EXIT_INTERRUPTED:
        # All that was open is closed. The interpreter would wait for threads that wait for a
        # server, which may hang.
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
