"""What `warm` and `verify` have in common: many items, a progress line, a line for each failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from dserverfs.base.model import SCHEME
from dserverfs.cli.arguments import say

if TYPE_CHECKING:
    from pathlib import Path

    from dserverfs.base.model import DserverURI
    from dserverfs.client import Client

T = TypeVar("T")

EXIT_FAILED = 1


class Tally:
    """How many items were done, and how large they are."""

    def __init__(self) -> None:
        self.items = 0
        self.failed = 0
        self.bad: set[str] = set()  # the names of what failed
        self.size_in_bytes = 0

    def run(
        self,
        things: Iterable[T],
        work: Callable[[T], None],
        name_of: Callable[[T], str],
        size_of: Callable[[T], int],
    ) -> None:
        """Do `work` with all, with progress; print a line for each that fails."""
        from dserverfs.base.errors import DserverfsError
        from dserverfs.cli.progress import ProgressLine, size
        from dserverfs.cli.whole_datasets import for_each

        with ProgressLine() as line:

            def done(thing: T, error: DserverfsError | None) -> None:
                self.size_in_bytes += size_of(thing)
                if error is None:
                    self.items += 1
                else:
                    line.show("")
                    self.fail(name_of(thing), str(error))
                line.show(f"{self.items} items, {size(self.size_in_bytes)}")

            for_each(things, work, done)

    def fail(self, name: str, reason: str) -> None:
        """Count something that could not be done, and print a line for it."""
        self.items += 1
        self.failed += 1
        self.bad.add(name)
        say(f"bad: {name}: {reason}")

    def summary(self, all_well: str, not_well: str) -> str:
        """Return one line on what came of it."""
        from dserverfs.cli.progress import size

        if self.failed:
            return f"{self.failed} of {self.items} items {not_well}"
        return f"{self.items} items, {size(self.size_in_bytes)}: {all_well}"


def is_uri(target: str) -> bool:
    return target.startswith(f"{SCHEME}://")


def client_of(target: str, cache_directory: Path | None) -> tuple[Client, DserverURI]:
    """Return a client for a dserver URI, to be used as a context manager."""
    from dserverfs.base.model import DserverURI
    from dserverfs.client import Client
    from dserverfs.settings import Settings

    uri = DserverURI.parse(target)
    directory = cache_directory.absolute() if cache_directory else None
    return Client(uri.server, Settings.load(), cache_directory=directory), uri
