"""The commands: a module for each, with its arguments and its work.

`add(commands)` defines the arguments and names the function that runs the command, which
returns the exit status or raises DserverfsError. That function imports the modules that do
the work, so a command needs no more than its own dependencies. Shared modules:

    parser            all of them together: messages, hints, form of the help
    arguments         kinds of arguments, one line of output
    log_file          the log of a mount                      (mount)
    mount_options     what the -o of a mount say             (mount, mount-helper)
    successor_command how a daemon is started again when one died (mount)
      successor         what runs then
    readme            README.yml of a message, or in an editor (freeze, derive)
    progress          the progress line, sizes as people read them
    findings          a check, and what it found in its time (doctor)
      machine_checks    those of this machine
      server_checks     those of a server
    made_files        man page and completions, made of the parser (completion)
    mounted           the daemon of a path in a mount          (freeze, discard, status, ...)
    fetching          what the cache lacks, told and fetched   (warm, pin)
      targets           the items of URIs and of paths in mounts
      item_globs        which of them are meant
      plans             which bytes of them, as trace records
    whole_items       work on many items, with progress        (warm, pin, verify, prove)
      remote_items      items of a server
      local_items       items of a directory
    proofs            whole datasets compared, and their block hashes (prove)
    found_datasets    what is found, as JSON and as a table     (find)
    serve_management  the table of `serve user add` and the other actions
      server_actions    their functions
    demo_mount        the demonstration, in processes of its own
      demo_datasets     the datasets that it publishes
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
    "restart",
    "mount-helper",
    "unit",
    "site-cache",
    "derive",
    "diff",
    "freeze",
    "discard",
    "withdraw",
    "status",
    "find",
    "warm",
    "pin",
    "unpin",
    "trace",
    "verify",
    "prove",
    "cache",
    "login",
    "logout",
    "whoami",
    "doctor",
    "completion",
    "help",
)


class Command(Protocol):
    """The interface of each module."""

    def add(self, commands: Commands) -> None: ...


def named(arguments: Sequence[str]) -> list[Command]:
    """Return the command that the arguments begin with; all of them if they begin with none.

    The modules of all take 8 ms of CPU, of which a mount has none to give away.
    """
    names = arguments[:1] if arguments and arguments[0] in NAMES else NAMES
    return [_module(name) for name in names]


def _module(name: str) -> Command:
    return cast("Command", importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
