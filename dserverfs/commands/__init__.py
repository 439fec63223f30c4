"""The commands: each module has the arguments of one, and what it does.

`add(commands)` defines the arguments and names the function that runs it, which
returns the exit status or raises DserverfsError. What does the work is imported
when it is asked for, so that a command needs no more than its own dependencies.
"""

from __future__ import annotations

from dserverfs.commands import (
    cache,
    demo,
    discard,
    freeze,
    login,
    mount,
    serve,
    status,
    umount,
    verify,
    warm,
    whoami,
)

# In the order in which `dserverfs --help` lists them.
ALL = (
    serve,
    demo,
    mount,
    umount,
    freeze,
    discard,
    status,
    warm,
    verify,
    cache,
    login,
    whoami,
)
