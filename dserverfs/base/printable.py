"""Text of others made fit for a terminal and a log: one line, without control characters.

Used where messages are made: by the errors, the formatter of the log, and commands that
print names. Names, relpaths, reason phrases and answers of servers come from others,
and a terminal obeys control characters: it hides lines, changes its title, answers as
if typed. Imports nothing of this package.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable
from types import TracebackType

# A message that quotes more than that is no message. Guess: a relpath is at most 4 KiB.
MAX_MESSAGE_LETTERS = 8192
NAMES_IN_MESSAGE = 10
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def printable(text: str) -> str:
    """Return `text` with every letter that does not print as itself written as an escape.

    Those are controls, line ends, bidirectional overrides, lone surrogates and
    spaces other than the plain one, as `str.isprintable` has it (Unicode's "Other"
    and "Separator"). Text that is too long loses its middle.
    """
    if len(text) > MAX_MESSAGE_LETTERS:
        half = MAX_MESSAGE_LETTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def one_line(text: str, max_letters: int = 300) -> str:
    """Return a text of another program, short: line ends and controls become spaces."""
    spaced = "".join(letter if letter.isprintable() else " " for letter in text[:1000])
    return " ".join(spaced.split())[:max_letters]


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many more there are, or "none"."""
    all_names = list(names)
    first = ", ".join(all_names[:NAMES_IN_MESSAGE]) or "none"
    more = len(all_names) - NAMES_IN_MESSAGE
    return f"{first} and {more} more" if more > 0 else first


class PrintableFormatter(logging.Formatter):
    """Formats records of a log so that each is one line, and so is each line of a traceback.

    Times have their zone: a log is read elsewhere, and in the other half of the year.
    """

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        moment = datetime.datetime.fromtimestamp(record.created).astimezone()
        return moment.isoformat(" ", "milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(printable(line) for line in lines)


def counted(number: int, noun: str) -> str:
    """Return how many there are of what `noun` names one of; all nouns here take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(size_in_bytes: float) -> str:
    """Return a size as people read it."""
    if size_in_bytes < 1024:
        return f"{size_in_bytes:.0f} B"
    for unit in _UNITS:
        size_in_bytes /= 1024
        if size_in_bytes < 1024 or unit == _UNITS[-1]:
            return f"{size_in_bytes:.1f} {unit}"
    raise AssertionError  # the last unit takes everything


def public_url(url: str) -> str:
    """Return `url` without its possible secrets: user, query and fragment.

    For every message and log line that names a URL. Nothing is checked, for a
    server may answer anything as a URL: all before the last @ counts as a user.
    """
    address = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = address.rpartition("://")
    return one_line(f"{scheme}{separator}{rest.rpartition('@')[2]}", 2000)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
