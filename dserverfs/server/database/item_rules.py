"""Rules for the items of a dataset that is announced or registered, as tables.

By hand, for there may be a million items: marshmallow takes 1.4 s of CPU for the form of
100,000 alone, where these take 0.35 s for form and values. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from dserverfs.base import limits
from dserverfs.base.errors import UsageError
from dserverfs.base.limits import quoted
from dserverfs.server.database.forms import require


class Rule(NamedTuple):
    """A rule for one value of an item."""

    key: str
    status: int  # of the refusal
    is_kept: Callable[[Any], bool]  # of a value that keeps all rules before this one
    fault: str  # after "hash 'x' of 'relpath'"
    default: object = None  # of an item that lacks it


RELPATH = Rule(
    "relpath", 400, limits.relpath_is_usable, "is not a relative path of plain components"
)


def check_item(item: Mapping[str, Any], rules: Sequence[Rule]) -> None:
    """Raise UsageError for the first rule that the item breaks."""
    for key, status, is_kept, fault, default in rules:
        value = item.get(key, default)
        if not is_kept(value):
            of = "" if key == "relpath" else f" of {quoted(item.get('relpath'))}"
            raise UsageError(f"{key} {quoted(value)}{of} {fault}", status=status)


def refuse_files_as_directories(relpaths: Set[str]) -> None:
    """Raise UsageError if one of the relpaths is a directory of another."""
    for relpath in relpaths:
        parent = relpath.rpartition("/")[0]
        while parent:
            require(parent not in relpaths, f"relpath {parent!r} is a file and a directory at once")
            parent = parent.rpartition("/")[0]
