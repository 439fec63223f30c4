"""What the `-o` of a mount say: options of mount(8), of FUSE, and of ours as fstab spells them.

Used by the command `mount` and the helper of mount(8). Pure.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import LEVELS, size

POLICIES = ("off", "complete", "strict")
MAX_ID = 2**32 - 2  # of a user or a group: the kernel has 32 bits, and 2**32 - 1 is none

# What libfuse and fusermount3 pass to the kernel.
_KERNEL_OPTIONS = frozenset(
    {"nosuid", "nodev", "noexec", "exec", "atime", "noatime", "async", "sync", "dirsync"}
)
_KERNEL_VALUES = frozenset({"context", "fscontext", "defcontext", "rootcontext"})  # of SELinux
# Those of fstab(5), mount(8) and systemd.mount(5) that are for others than a file system.
_OF_OTHERS = frozenset(
    {"defaults", "auto", "noauto", "nofail", "fail", "_netdev", "user", "nouser", "users"}
    | {"nousers", "owner", "noowner", "group", "nogroup", "silent", "loud", "default_permissions"}
)
_VALUES_OF_OTHERS = frozenset({"comment", "user", "helper", "uhelper"})
_PREFIXES_OF_OTHERS = ("x-", "X-")
# Those that say what is so anyway. A dataset holds no devices, no programs of another user and
# no symbolic links; times of last access are those of last change; nothing is locked.
_WITHOUT_EFFECT = frozenset(
    {"suid", "dev", "symfollow", "nosymfollow", "mand", "nomand", "iversion", "noiversion"}
    | {"relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"}
    | {"diratime", "nodiratime"}
)
_PART = re.compile(r'(?:[^,"]|"[^"]*"?)+')


class Options(NamedTuple):
    """What all the -o say together."""

    umask: int = 0
    uid: int | None = None
    gid: int | None = None
    xattr: bool = False
    allow_other: bool = False
    is_read_only: bool = False
    kernel: tuple[str, ...] = ()
    user: str | None = None  # who mounts, in the place of root
    settings: Mapping[str, str] = {}  # by the name of the setting, for the server of the mount
    arguments: Mapping[str, Any] = {}  # by the name of the long option of `mount`


def delay(text: str) -> float | None:
    """Return a number of seconds; None for `manual`."""
    if text == "manual":
        return None
    try:
        delay_s = float(text)
    except ValueError:
        delay_s = -1.0
    if not 0 <= delay_s < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seconds nor manual")
    return delay_s


def metrics_address(text: str) -> tuple[str, int]:
    """Return host and port of [HOST:]PORT."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not [HOST:]PORT, such as 9400")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _id(text: str) -> int:
    found = _number(text)
    if found > MAX_ID:
        raise argparse.ArgumentTypeError(f"{text!r} is above {MAX_ID}")
    return found


def _octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of octal digits")
    return int(text, 8)


def _one_of(*words: str) -> Callable[[str], str]:
    def word(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
        return text

    return word


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():  # mount(8) is run in any directory
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with /")
    return path


# The long options of `mount`, in the spelling of fstab, and their kinds.
_ARGUMENTS: Mapping[str, Callable[[str], Any]] = {
    "cache_dir": _absolute,
    "cache_size": size,
    "staging_dir": _absolute,
    "freeze_delay": delay,
    "metrics": metrics_address,
    "verify": _one_of(*POLICIES),
    "log_file": _absolute,
    "log_level": _one_of(*LEVELS),
}
# Settings, which fstab cannot put into the environment, and their kinds.
_SETTINGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "token_file": ("DSERVER_TOKEN_FILE", _absolute),
    "ca_file": ("DSERVER_CA_FILE", _absolute),
    "protocol": ("DSERVER_PROTOCOL", _one_of("http", "https")),
}
_NUMBERS: Mapping[str, Callable[[str], int]] = {"umask": _octal, "uid": _id, "gid": _id}


def parse(options: Sequence[str]) -> Options:
    """Return what the arguments of all -o say; the last of several counts. Raises UsageError."""
    found: dict[str, Any] = {}
    kernel: list[str] = []
    settings: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    for option in split(options):
        name, has_value, value = option.partition("=")
        if option in ("ro", "rw"):
            found["is_read_only"] = option == "ro"
        elif option in ("allow_other", "xattr"):
            found[option] = True
        elif option in _KERNEL_OPTIONS or (has_value and name in _KERNEL_VALUES):
            kernel.append(option)
        elif option == "remount":
            raise UsageError("-o remount: a mount keeps its options: unmount it and mount it again")
        elif not is_known(option):
            raise UsageError(
                f"-o {option}: unknown option; `dserverfs help commands` tells of those there are"
            )
        elif name in _NUMBERS:
            found[name] = _value(option, _NUMBERS[name])
        elif name == "setuid":
            found["user"] = value
        elif name in _SETTINGS:
            setting, kind = _SETTINGS[name]
            settings[setting] = str(_value(option, kind))
        elif name in _ARGUMENTS:
            arguments[name] = _value(option, _ARGUMENTS[name])
    return Options(**found, kernel=tuple(kernel), settings=settings, arguments=arguments)


def is_known(option: str) -> bool:
    """Return whether `parse` takes an option, if its value is a right one."""
    name, has_value, _ = option.partition("=")
    if has_value:
        ours = name in {"setuid", *_NUMBERS, *_SETTINGS, *_ARGUMENTS}
        others = name in _KERNEL_VALUES | _VALUES_OF_OTHERS
        return ours or others or name.startswith(_PREFIXES_OF_OTHERS)
    plain = {"ro", "rw", "allow_other", "xattr", "remount"}
    known = plain | _KERNEL_OPTIONS | _OF_OTHERS | _VALUES_OF_OTHERS | _WITHOUT_EFFECT
    return option in known or option.startswith(_PREFIXES_OF_OTHERS)


def known_of(options: Sequence[str]) -> list[str]:
    """Return the options that are known: mount(8) -s asks to pass over the others."""
    return [option for option in split(options) if is_known(option)]


def split(options: Sequence[str]) -> Iterator[str]:
    """Yield each option; a comma between double quotes is part of a value, as for mount(8)."""
    for group in options:
        for part in _PART.findall(group):
            yield part.replace('"', "")


def _value(option: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(option.partition("=")[2])
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"-o {option}: {error}") from None
