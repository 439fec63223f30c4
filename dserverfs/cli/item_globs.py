"""Which items a user means: patterns of relpaths, as shells and rsync have them.

A pattern without a slash is of the last component, in any directory. One with a slash is of
the whole relpath; `*` and `?` stay within a component, and `**` does not. One that ends with a
slash is of all that is below that directory. One that is of no item is an error, as in shells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dserverfs.base.errors import UsageError
from dserverfs.base.printable import listed


class ItemGlobs:
    """The items whose relpath one of the patterns is of; without a pattern all."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises UsageError for what is no pattern."""
        self._expressions: dict[str, re.Pattern[str]] = {}
        self._unmatched = dict.fromkeys(patterns)
        for pattern in patterns:
            try:
                self._expressions[pattern] = re.compile(_expression(pattern))
            except re.error as error:
                raise UsageError(f"{pattern}: is no pattern of paths: {error.msg}") from error

    def __bool__(self) -> bool:
        """Return whether there is a pattern."""
        return bool(self._expressions)

    def has(self, relpath: str) -> bool:
        if not self._expressions:
            return True
        found = [
            each for each, expression in self._expressions.items() if expression.match(relpath)
        ]
        for pattern in found:
            self._unmatched.pop(pattern, None)
        return bool(found)

    def require_matches(self) -> None:
        """Raise UsageError if no item that was looked at has a path of one of the patterns."""
        if self._unmatched:
            raise UsageError(f"--include {listed(self._unmatched)}: no item has such a path")


def _expression(pattern: str) -> str:
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    elif pattern.endswith("/"):
        pattern += "**"
    found, rest = r"(?s)", pattern.lstrip("/")
    while rest:
        for sign, expression in (("**/", r"(?:.*/)?"), ("**", r".*"), ("*", r"[^/]*")):
            if rest.startswith(sign):
                found, rest = found + expression, rest.removeprefix(sign)
                break
        else:
            one, rest = _character(rest)
            found += one
    return rf"{found}\Z"


def _character(pattern: str) -> tuple[str, str]:
    """Return the expression of what a pattern begins with, and the rest of the pattern."""
    first, rest = pattern[0], pattern[1:]
    if first == "?":
        return r"[^/]", rest
    end = rest.find("]", 2 if rest.startswith("!") else 1)
    if first != "[" or end < 0:
        return re.escape(first), rest
    letters = rest[:end].removeprefix("!").replace("\\", r"\\").replace("[", r"\[")
    letters = letters.replace("]", r"\]").replace("^", r"\^").replace("&&", r"&\&")
    kind = "(?!/)[^" if rest.startswith("!") else "(?!/)["
    return f"{kind}{letters}]", rest[end + 1 :]
