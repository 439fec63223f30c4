"""Shared by the commands: their place in the parser, kinds of arguments, and output."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from typing import TextIO, TypeAlias

from dserverfs.base.errors import UsageError
from dserverfs.base.model import SCHEME, DserverURI
from dserverfs.base.printable import printable

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LEVELS = ("debug", "info", "warning", "error")  # of a log

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print a line, whatever names of others are in it."""
    print(printable(text), file=file, flush=True)


def missing_extra(extra: str, error: ModuleNotFoundError) -> Exception:
    """Return what to raise when a module of an optional extra is not installed."""
    if error.name is None or error.name.partition(".")[0] == "dserverfs":
        return error  # a fault of ours, not of the installation
    return UsageError(f"{error.name} is not installed; run: pip install 'dserverfs[{extra}]'")


def size(text: str) -> int:
    """Return a number of bytes given as 500M or 20G."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 20G")
    number, unit = match.groups()
    return int(float(number) * 1024 ** " KMGT".index(unit.upper() or " "))


def server_of(text: str) -> str:
    """Return HOST[:PORT] of an argument that is that or a dserver URI."""
    return DserverURI.parse(text if "://" in text else f"{SCHEME}://{text}").server


def read_new_password(prompt: str) -> str:
    """Return a password as `read_password` does; one that is typed is typed twice."""
    password = read_password(prompt)
    if sys.stdin.isatty() and getpass.getpass("Again: ") != password:
        raise UsageError("the two passwords differ")
    return password


def read_password(prompt: str) -> str:
    """Return a password: typed unseen, or the first line of standard input."""
    if sys.stdin.isatty():
        password = getpass.getpass(prompt)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise UsageError("no password was given")
    return password
