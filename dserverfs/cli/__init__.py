"""The commands: each module has the arguments of one, and what it does.

`add(commands)` defines the arguments and names the function that runs it, which
returns the exit status or raises DserverfsError. What does the work is imported
when it is asked for, so that a command needs no more than its own dependencies.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from dserverfs.cli.arguments import Commands

# In the order in which `dserverfs --help` lists them; each is a module here.
NAMES = (
    "serve",
    "demo",
    "mount",
    "umount",
    "freeze",
    "discard",
    "status",
    "warm",
    "verify",
    "cache",
    "login",
    "whoami",
    "help",
)


class Command(Protocol):
    """What each module has."""

    def add(self, commands: Commands) -> None: ...


def named(arguments: Sequence[str]) -> list[Command]:
    """Return the command that the arguments begin with, or all, to be told of or chosen from.

    The modules of all take 8 ms of CPU, of which a mount has none to give away.
    """
    names = arguments[:1] if arguments and arguments[0] in NAMES else NAMES
    return [cast("Command", importlib.import_module(f"{__name__}.{name}")) for name in names]
