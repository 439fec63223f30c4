"""The items of a server's datasets: fetched into the cache, or compared with their manifest.

Comparing goes to the store and past the cache, which would hide a fault of the stored
object. Items are taken in the manifest's order. Blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.disk_space import AS_IT_IS
from dserverfs.base.errors import IntegrityError, UsageError
from dserverfs.base.hashes import Taker
from dserverfs.base.items import ItemContent
from dserverfs.base.model import SCHEME, Dataset, DserverURI
from dserverfs.base.printable import public_url
from dserverfs.cli import mounted
from dserverfs.cli.whole_items import BytesSoFar, Totals, WholeItem
from dserverfs.client import AS_COMMANDS, Client
from dserverfs.reading.open_item import OpenItem
from dserverfs.settings import Settings

CACHE_PATIENCE_S = 120.0


class RemoteItem(NamedTuple):
    name: str  # for messages
    content: ItemContent


def is_uri(target: str) -> bool:
    """Return whether a target is no path but a URI; raises UsageError for one of another scheme."""
    if target.startswith(("http://", "https://", "s3://", "azure://")):
        raise UsageError(
            f"{public_url(target)}: name a path in a mount, or dserver://HOST[:PORT]/s3/BUCKET/UUID"
        )
    return target.startswith(f"{SCHEME}://")


def uri_of(target: str) -> DserverURI:
    """Return the URI that a target is, or of the dataset in a mount that it is a path in."""
    if is_uri(target):
        return DserverURI.parse(target)
    facts = mounted.last(mounted.find(Path(target)).ask("status"))
    if facts.get("state") != "frozen":
        raise UsageError(f"{target}: is not in a frozen dataset")
    return DserverURI.parse(facts["uri"])


def client_of(uri: DserverURI, cache_directory: Path | None, cache_size: int = AS_IT_IS) -> Client:
    """Return a client for the server of a URI, to be used as a context manager.

    It waits for a slow disk: what is fetched is to be in the cache at the end. The cache's
    limit stays what a mount has made it, unless another is given.
    """
    directory = cache_directory.absolute() if cache_directory else None
    return Client(
        uri.server,
        Settings.load(),
        cache_directory=directory,
        cache_size=cache_size,
        cache_patience_s=CACHE_PATIENCE_S,
        staleness=AS_COMMANDS,
    )


def items_of(
    client: Client, datasets: Iterable[Dataset], is_meant: Callable[[str], bool] = lambda _: True
) -> Iterator[RemoteItem]:
    """Yield the items of the datasets whose relpath is meant; raises what keeps one from reading.

    Without `is_meant` those are all.
    """
    for dataset in datasets:
        where = client.catalogue.uri_of(dataset)
        for relpath, content in client.catalogue.contents(dataset):
            if is_meant(relpath):
                yield RemoteItem(f"{where} {relpath}", content)


def totals_of(datasets: Iterable[Dataset]) -> Totals:
    """Return how many items the datasets have, and of how many bytes, as the server lists them."""
    items = size_in_bytes = 0
    for dataset in datasets:
        if dataset.number_of_items is None or dataset.size_in_bytes is None:
            return Totals(0, 0)
        items += dataset.number_of_items
        size_in_bytes += dataset.size_in_bytes
    return Totals(items, size_in_bytes)


def to_be_compared(client: Client, items: Iterable[RemoteItem]) -> Iterator[WholeItem]:
    for item in items:
        so_far = BytesSoFar()
        work = partial(compare, client, item, so_far)
        yield WholeItem(item.name, item.content.size_in_bytes, work, so_far)


def to_be_warmed(client: Client, item: RemoteItem) -> WholeItem:
    so_far = BytesSoFar()
    work = partial(_warm, client, item, so_far.add)
    return WholeItem(item.name, item.content.size_in_bytes, work, so_far)


def _warm(
    client: Client, item: RemoteItem, advance: Callable[[int], None] = lambda count: None
) -> None:
    """Load the whole item into the cache, compared; raises what keeps it from being there."""
    _require_not_refused(item)
    if not client.reader.has_all_verified(item.content):
        OpenItem(client.reader, item.content).load(advance)


def warm_blocks(client: Client, item: RemoteItem, blocks: Sequence[int]) -> None:
    """Load these blocks into the cache; raises what keeps them from being there."""
    if len(blocks) == item.content.number_of_blocks:
        _warm(client, item)
    else:
        _require_not_refused(item)
        OpenItem(client.reader, item.content).load_blocks(blocks)


def compare(client: Client, item: RemoteItem, *others: Taker) -> None:
    """Read the object and raise IntegrityError unless it is the item; `others` get its bytes."""
    _require_not_refused(item)
    content = item.content
    if content.size_in_bytes == 0 and client.stored.size(content) is None:
        raise IntegrityError("is not stored")
    found = client.stored.digest(content, content.size_in_bytes, *others)
    if found != content.hash:
        raise IntegrityError(f"has hash {found}, the manifest says {content.hash}")


def _require_not_refused(item: RemoteItem) -> None:
    if item.content.is_refused:
        raise IntegrityError(
            "is refused: the manifest gives it a relpath, size, hash or date that no item can have"
        )
