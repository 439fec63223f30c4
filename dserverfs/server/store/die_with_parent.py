"""Run a program that is killed when the process that started it ends, however that ends.

A script of its own: `python -I -S die_with_parent.py PARENT_PID PROGRAM ARGUMENT...`
It asks the kernel (PR_SET_PDEATHSIG) and becomes PROGRAM. That it is a program
and not `preexec_fn` keeps it safe beside threads; that it compares the parent
closes the moment before the kernel knew. Linux sends the signal when the
*thread* that started this one ends: start it from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent: int, command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent is gone already")
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
