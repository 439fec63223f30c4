"""Shared by the commands: their place in the parser, kinds of arguments, and output."""

from __future__ import annotations

import argparse
import datetime
import getpass
import re
import sys
import termios
import time
import urllib.parse
from typing import TextIO, TypeAlias

from dserverfs.base.errors import UsageError
from dserverfs.base.model import SCHEME, DserverURI
from dserverfs.base.printable import printable, public_url

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LEVELS = ("debug", "info", "warning", "error")  # of a log

MAX_PASTED_LETTERS = 64 * 1024
MAX_TIMEOUT_S = 1e6
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print a line, whatever names of others are in it."""
    print(printable(text), file=file, flush=True)


def sentence(text: str) -> str:
    """Return the description that says no more than the line in the list of commands."""
    return f"{text[:1].upper()}{text[1:]}."


def example(*lines: str) -> str:
    """Return the end of a command's help: command lines to begin with."""
    return "\n  ".join(["example:", *lines])


def has_terminal() -> bool:
    """Return whether there is somebody to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def says_yes(question: str) -> bool:
    """Ask whoever is at the terminal; anything but yes is no."""
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline(100).strip().lower() in ("y", "yes")


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


def seconds(text: str) -> float:
    """Return a limit of time; 0 is to wait for nothing."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return found


def server_of(text: str) -> str:
    """Return HOST[:PORT] of an argument that is that, a dserver URI or a web address."""
    if is_web_address(text):
        try:
            text = urllib.parse.urlsplit(text).netloc.rpartition("@")[2]
        except ValueError as error:
            raise UsageError(f"{public_url(text)}: {error}") from error
    return DserverURI.parse(text if "://" in text else f"{SCHEME}://{text}").server


def is_web_address(text: str) -> bool:
    return text.startswith(("https://", "http://"))


def moment(moment_s: float | None, now_s: float | None = None) -> str:
    """Return the moment, on the clock of this machine, and how long it is until then."""
    if moment_s is None:
        return "never, or the token does not say"
    left_s = moment_s - (time.time() if now_s is None else now_s)
    date = datetime.datetime.fromtimestamp(moment_s).astimezone()
    told = f"in {duration(left_s)}" if left_s > 0 else f"{duration(-left_s)} ago"
    if -1 < left_s <= 0:
        told = "just now"
    return f"{date:%Y-%m-%d %H:%M %Z} ({told})"


def duration(length_s: float) -> str:
    """Return a length of time as people say it, cut to one unit."""
    unit, unit_s = "day", 86400
    for smaller, smaller_s in (("hour", 3600), ("minute", 60), ("second", 1)):
        if length_s < 2 * unit_s:
            unit, unit_s = smaller, smaller_s
    count = int(length_s // unit_s)
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def read_pasted(prompt: str) -> str:
    """Return what is pasted on a terminal, unseen, or all of standard input.

    A page's JSON may be of several lines. `getpass` would drop all but the first.
    """
    if not sys.stdin.isatty():
        return sys.stdin.read(MAX_PASTED_LETTERS)
    before = termios.tcgetattr(sys.stdin)
    unseen = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, unseen)
        print(prompt, end="", flush=True)
        text = line = sys.stdin.readline(MAX_PASTED_LETTERS)
        while text.lstrip()[:1] == "{" and "}" not in text and line.strip():
            line = sys.stdin.readline(MAX_PASTED_LETTERS)
            text += line
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        print()
    return text


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
