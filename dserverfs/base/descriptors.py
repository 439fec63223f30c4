"""The files that this process may have open, and those of them that programs get through a mount.

A program may open files of staged datasets without end. It gets EMFILE, as for files of its own,
while as many descriptors are left as the daemon needs to list, to read its cache, to ask the
server and to answer commands: one program's files are not the end of the others.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from dserverfs.base.errors import TooManyOpen, UsageError

# Cache files of hot blocks (at most 16,384, and a quarter of the limit), connections (about
# 150), and the rest; of a small limit half.
RESERVED = 16_896
# What the kernel lets a process have, if no other limit is set.
_MOST = Path("/proc/sys/fs/nr_open")
_USUAL_MOST = 1 << 20
# With fewer, the cache, the server's connections and one program's files do not fit together:
# with 96, what is not cached was EMFILE, and nothing could be written.
LEAST = 256


def raise_limit() -> None:
    """Allow this process as many open files as it may have; a shell allows 1,024.

    Raises UsageError if these are less than LEAST.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < LEAST:
        raise UsageError(
            f"a mount needs {LEAST} open files, and may have {most} here: raise the hard limit"
            " (ulimit -Hn, LimitNOFILE= of systemd)"
        )
    wanted = most
    if most == resource.RLIM_INFINITY:
        try:
            wanted = int(_MOST.read_text())
        except (OSError, ValueError):
            wanted = _USUAL_MOST
    if now not in (most, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, wanted), most))


def require_spare() -> None:
    """Return if a program may have one more file open; raises TooManyOpen."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    # The kernel gives the lowest number that is free, so it says how many are in use.
    lowest = os.dup(1)
    os.close(lowest)
    if lowest >= limit - min(RESERVED, limit // 2):
        raise TooManyOpen(
            f"programs have {lowest} files of the mount open, of {limit} that its daemon may have"
            " (ulimit -n); close some, or raise the hard limit"
        )
