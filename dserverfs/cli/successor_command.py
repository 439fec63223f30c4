"""The command that serves a mount on when its daemon has died: that of the mount, once more.

Used by `mount`, which leaves it to the channel. The words are those of `dserverfs mount`, so that
`ps`, and who looks for the daemon of a mount, find both alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.cli import mount_options

_PROGRAM = "dserverfs.cli.successor"
_DONE = ("setuid",)  # whom it names this process is by now


def words(arguments: argparse.Namespace, path: Path) -> tuple[str, ...]:
    """Return the command, of the arguments that the mount at `path` was made with."""
    from dserverfs.mount.channel.succession import HERITAGE

    said = [str(arguments.uri), str(path)]
    for option in mount_options.split(arguments.options):
        if option.partition("=")[0] not in _DONE:
            said += ["-o", f'"{option}"' if "," in option else option]
    for name in ("cache_dir", "staging_dir", "log_file"):
        if (path := getattr(arguments, name)) is not None:
            said += [_option(name), _absolute(path)]
    if arguments.cache_size is not None:
        said += ["--cache-size", str(arguments.cache_size)]
    delay_s = arguments.freeze_delay
    said += ["--freeze-delay", "manual" if delay_s is None else str(delay_s)]
    if arguments.metrics is not None:
        host, port = arguments.metrics
        said += ["--metrics", f"{host}:{port}"]
    for name in ("verify", "channel", "log_level"):
        said += [_option(name), getattr(arguments, name)]
    said += [_option(name) for name in ("read_only", "allow_other") if getattr(arguments, name)]
    return tuple(child_processes.module_command(_PROGRAM, HERITAGE, "mount", *said))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _absolute(path: Path) -> str:
    return str(path.absolute())
