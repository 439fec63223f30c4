"""Fetching what the cache lacks: told beforehand, refused if it cannot fit, looked at afterwards.

Used by `warm` and `pin`. Decisions are functions of amounts and room. Blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from dserverfs.base.errors import UsageError
from dserverfs.base.printable import counted
from dserverfs.cli.arguments import say
from dserverfs.cli.progress import ProgressLine, size
from dserverfs.cli.whole_items import EXIT_FAILED, Summary, Totals, WholeItem
from dserverfs.reading.cache.maintenance import Room

# Of the cache's limit; the rest is for all that is read besides.
MAX_PINNED_SHARE = 0.8
_SHOWN_EVERY = 1000  # items that are looked for


class Found(NamedTuple):
    """An item, and what of it the cache has."""

    item: WholeItem
    held_in_bytes: int
    is_here: bool  # all of it, compared
    is_pinned: bool


class Amount(NamedTuple):
    """The sums over items."""

    items: int = 0
    size: int = 0  # all in bytes
    missing: int = 0  # items of which something is to be fetched
    missing_size: int = 0
    to_fetch: int = 0
    pinned: int = 0

    def plus(self, found: Found) -> Amount:
        size_in_bytes = found.item.size_in_bytes
        return Amount(
            self.items + 1,
            self.size + size_in_bytes,
            self.missing + (not found.is_here),
            self.missing_size + (0 if found.is_here else size_in_bytes),
            self.to_fetch + (0 if found.is_here else size_in_bytes - found.held_in_bytes),
            self.pinned + (size_in_bytes if found.is_pinned else 0),
        )

    def text(self) -> str:
        items = counted(self.items, "item")
        return f"{self.missing} of {items}, {size(self.to_fetch)} of {size(self.size)}"


class Target(Protocol):
    """Items that a user names, and the cache that they are to be in."""

    cache: str  # of several targets with the same they are in one

    def room(self) -> Room: ...

    def items(self) -> Iterator[Found]:
        """Yield each item as it is now; blocks."""

    def prepare(self) -> None:
        """Have what belongs to whole datasets and is no item kept as well."""

    def pin(self) -> None:
        """Have the blocks of all items stay, those that come later, too."""

    def left_out(self) -> int:
        """Return how many items the cache does not hold, but those that failed."""


Refuse = Callable[[Amount, Room], str | None]


def warm(targets: Sequence[Target], summary: Summary) -> int:
    """Fetch what is missing; return the exit status. Raises UsageError if it cannot fit."""
    return _fetch(targets, summary, _looked_at(targets, refusal), lambda target: None)


def pin(targets: Sequence[Target], summary: Summary) -> int:
    """As `warm`, and keep all of it from eviction, beginning before it is fetched."""
    total = _looked_at(targets, refusal_to_pin)
    return _fetch(targets, summary, total, lambda target: target.pin())


def tell(targets: Sequence[Target], summary: Summary, refuse: Refuse) -> int:
    """Print what would be fetched, and fetch nothing. Raises UsageError if it cannot fit."""
    total, amounts = Amount(), _Amounts()
    for target in targets:
        for found in target.items():
            amounts.add(target, found)
            total = total.plus(found)
            if not found.is_here:
                say(f"{size(found.item.size_in_bytes):>10}  {found.item.name}")
    say(f"would be fetched: {total.text()}")
    amounts.require(targets, refuse)
    return EXIT_FAILED if summary.failed else 0


def refusal(wanted: Amount, room: Room) -> str | None:
    """Return why these items cannot all be in the cache at once; None if they can."""
    if not wanted.to_fetch:
        return None
    if not room.limit:
        return "nothing is fetched: this cache keeps nothing, its --cache-size is 0"
    pinned = max(room.pinned - wanted.pinned, 0)  # by others
    if wanted.size + pinned > room.limit:
        besides = f", of which {size(pinned)} are pinned" if pinned else ""
        return (
            f"{size(wanted.size)} do not fit: the cache holds at most {size(room.limit)}{besides};"
            " --cache-size of mount or warm sets another limit"
        )
    evictable = max(room.held - pinned - (wanted.size - wanted.to_fetch), 0)
    free = max(room.free + evictable, 0)
    if wanted.to_fetch > free:
        return (
            f"{size(wanted.to_fetch)} do not fit: the disk has room for {size(free)} of the cache"
        )
    return None


def refusal_to_pin(wanted: Amount, room: Room) -> str | None:
    """Return why these items cannot all be pinned; None if they can."""
    most = int(room.limit * MAX_PINNED_SHARE)
    pinned = max(room.pinned - wanted.pinned, 0)
    if wanted.size + pinned > most:
        besides = f" beside {size(pinned)} that are pinned" if pinned else ""
        return (
            f"{size(wanted.size)} cannot be pinned{besides}: of a cache of {size(room.limit)} that"
            f" is {size(most)} at most; --cache-size of mount or pin sets another limit"
        )
    return refusal(wanted, room)


class _Amounts:
    """How much there is to be in each cache."""

    def __init__(self) -> None:
        self._by_cache: dict[str, Amount] = {}

    def add(self, target: Target, found: Found) -> None:
        self._by_cache[target.cache] = self._by_cache.get(target.cache, Amount()).plus(found)

    def require(self, targets: Sequence[Target], refuse: Refuse) -> None:
        """Raise UsageError if those of a cache cannot all be in it."""
        for target in targets:
            amount = self._by_cache.pop(target.cache, None)
            if amount is not None and (reason := refuse(amount, target.room())) is not None:
                raise UsageError(reason)


def _looked_at(targets: Sequence[Target], refuse: Refuse) -> Amount:
    """Return how much all targets are; raises UsageError if those of a cache do not fit."""
    total, amounts = Amount(), _Amounts()
    with ProgressLine() as line:
        for target in targets:
            for found in target.items():
                amounts.add(target, found)
                total = total.plus(found)
                if total.items % _SHOWN_EVERY == 0:
                    line.show(f"looking: {counted(total.items, 'item')}")
    amounts.require(targets, refuse)
    return total


def _fetch(
    targets: Sequence[Target], summary: Summary, total: Amount, hold: Callable[[Target], None]
) -> int:
    if total.missing:
        say(f"to fetch: {total.text()}")
    for target in targets:
        hold(target)
        target.prepare()
    missing = (found.item for target in targets for found in target.items() if not found.is_here)
    summary.run("warming", missing, lambda: Totals(total.missing, total.missing_size))
    for target in targets:
        hold(target)  # what got another name meanwhile
    # Asked when all were fetched: the last may have taken the place of the first.
    left_out = sum(target.left_out() for target in targets)
    if summary.failed:
        all_items = max(total.items, summary.failed)  # a directory may have failed
        say(f"{summary.failed} of {counted(all_items, 'item')} could not be read")
    elif not left_out:
        say(f"{counted(total.items, 'item')}, {size(total.size)}: in the cache")
    if left_out:
        say(
            f"not in the cache: {left_out} of {counted(total.items, 'item')}; the cache has no"
            " room, or cannot be written; see dserverfs cache info, and mount --cache-size"
        )
    return EXIT_FAILED if summary.failed or left_out else 0
