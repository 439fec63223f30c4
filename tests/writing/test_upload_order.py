"""What an upload decides by itself: whether a registered dataset is the same, what is sent when."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.errors import Cancelled, Conflict, NotFound, TooLarge, Unreachable
from dserverfs.base.hashes import MD5, digest
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Item
from dserverfs.writing.upload.azure import MAX_BLOB_BYTES
from dserverfs.writing.upload.uploader import (
    LARGE_BYTES,
    LARGE_THREADS,
    MAX_OBJECT_BYTES,
    MAX_PUT_BYTES,
    THREADS,
    Uploader,
    _Queue,
    _send_all,
    has_same_items,
)


def dataset(**sizes: int) -> LocalDataset:
    items = ItemTable()
    for relpath, size in sizes.items():
        items.add(relpath, size, str(digest(MD5, relpath.encode())), 5, 5.0)
    return LocalDataset({"uuid": "u"}, b"", MD5, items, lambda item: Path(item.relpath), [], {}, {})


OURS = dataset(a=1, b=2, c=3)


def manifest(ours: LocalDataset = OURS) -> dict[str, Any]:
    entries = {
        item.identifier: {
            "relpath": item.relpath,
            "size_in_bytes": item.size_in_bytes,
            "hash": item.hash,
            "utc_timestamp": 1.0,
        }
        for item in ours.items.values()
    }
    return {"hash_function": MD5, "items": entries}


class Pieces:
    """A manifest as it arrives, in pieces of a few bytes."""

    def __init__(self, content: dict[str, Any], size: int = 7) -> None:
        self._text = json.dumps(content).encode()
        self._size = size
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._text), self._size):
            yield self._text[start : start + self._size]

    def close(self) -> None:
        self.is_closed = True


def is_same(content: dict[str, Any], size: int = 7) -> bool:
    pieces = Pieces(content, size)
    resolver: Any = SimpleNamespace(manifest_pieces=lambda registered: pieces)
    same = has_same_items(resolver, OURS, None)  # type: ignore[arg-type]
    assert pieces.is_closed
    return same


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_manifest_of_the_same_items_is_the_same_in_any_pieces(size: int) -> None:
    content = manifest()
    for entry in content["items"].values():
        entry["hash"] = entry["hash"].upper()

    assert is_same(content, size)


def changed(place: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda items: items[list(items)[place]].update(values)


@pytest.mark.parametrize("size", [7, 10_000])
@pytest.mark.parametrize(
    "change",
    [
        *(changed(place, relpath="other") for place in (0, 2)),
        *(changed(place, size_in_bytes=9) for place in (0, 2)),
        *(changed(place, hash="0" * 32) for place in (0, 1, 2)),
        lambda items: items.popitem(),
        lambda items: items.pop(next(iter(items))),
        lambda items: items.clear(),
        lambda items: items.update({"f" * 40: next(iter(items.values()))}),
        lambda items: items.update({next(iter(items)): "no entry"}),
    ],
)
def test_manifest_of_other_items_is_another(
    change: Callable[[dict[str, Any]], object], size: int
) -> None:
    content = manifest()
    change(content["items"])

    assert not is_same(content, size)


def test_item_that_is_there_twice_hides_none_that_is_missing() -> None:
    content = manifest()
    entries = [json.dumps({key: entry})[1:-1] for key, entry in content["items"].items()]
    text = f'{{"items": {{{", ".join([entries[0], entries[0], entries[2]])}}}}}'
    pieces: Any = Pieces({})
    pieces._text = text.encode()
    resolver: Any = SimpleNamespace(manifest_pieces=lambda registered: pieces)

    assert not has_same_items(resolver, OURS, None)  # type: ignore[arg-type]


def uploader_on(**resolver: Any) -> Uploader:
    routes = {"takes_parts": lambda: False, "server_url": "http://server"}
    made: Any = SimpleNamespace(uploads=SimpleNamespace(**routes | resolver.pop("routes", {})))
    made.__dict__.update(resolver)
    return Uploader(made, SimpleNamespace())  # type: ignore[arg-type]


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: object) -> Any:
        raise error

    return fail


def test_what_is_registered_is_this_one_another_or_nothing() -> None:
    other = manifest()
    other["items"].popitem()
    pieces = {"s3://b/same": manifest(), "s3://b/other": other}
    found = uploader_on(dataset=lambda uri: uri, manifest_pieces=lambda uri: Pieces(pieces[uri]))

    assert found.is_registered(OURS, "s3://b/same")
    with pytest.raises(Conflict, match="with other items"):
        found.is_registered(OURS, "s3://b/other")
    assert not uploader_on(dataset=raising(NotFound("none"))).is_registered(OURS, "s3://b/u")
    with pytest.raises(Unreachable):
        uploader_on(dataset=raising(Unreachable("away"))).is_registered(OURS, "s3://b/u")


@pytest.mark.parametrize(
    ("base_uri", "takes_parts", "limit"),
    [
        ("s3://b", False, MAX_PUT_BYTES),
        ("s3://b", True, MAX_OBJECT_BYTES),
        (None, True, MAX_OBJECT_BYTES),
        ("azure://account/b", True, MAX_BLOB_BYTES),
        ("azure://account/b", False, MAX_BLOB_BYTES),
    ],
)
def test_item_of_the_largest_size_is_taken_and_no_larger_one(
    base_uri: str | None, takes_parts: bool, limit: int
) -> None:
    on = uploader_on(routes={"takes_parts": lambda: takes_parts})

    assert on.max_item_bytes(base_uri) == limit
    on._require_sizes(dataset(a=limit), base_uri or "s3://b")
    with pytest.raises(TooLarge, match=f"b: has {limit + 1} bytes"):
        on._require_sizes(dataset(a=1, b=limit + 1), base_uri or "s3://b")


# The order


def items(*sizes: int) -> list[Item]:
    table = dataset(**{f"item{number}": size for number, size in enumerate(sizes)})
    return list(table.items.values())


def test_large_items_go_first_a_few_at_once_and_all_go_once() -> None:
    sizes = [LARGE_BYTES + n for n in (1, 5, 0, 4, 2, 3)] + [LARGE_BYTES - 1, 7, 7]
    queue = _Queue(lambda: iter(items(*sizes)))
    assert len(queue) == len(sizes)

    first = [queue.take() for _ in range(LARGE_THREADS)]
    small = queue.take()
    assert [item.size_in_bytes - LARGE_BYTES for item in first if item] == [5, 4, 3, 2]
    assert small is not None
    assert small.size_in_bytes < LARGE_BYTES
    queue.done(small)
    assert first[0] is not None
    next_small = queue.take()
    assert next_small is not None
    assert next_small.size_in_bytes < LARGE_BYTES, "a small one that ends makes no room"
    queue.done(first[0])
    fifth = queue.take()
    assert fifth is not None
    assert fifth.size_in_bytes == LARGE_BYTES + 1
    rest = []
    queue.done(fifth)
    while (item := queue.take()) is not None:
        rest.append(item.size_in_bytes)
        queue.done(item)

    assert rest == [LARGE_BYTES, 7]


class FakeSender:
    def __init__(self, fails: dict[str, BaseException] | None = None) -> None:
        self.sent: list[str] = []
        self.is_readme_sent = self.are_hashes_sent = False
        self._fails = fails or {}
        self._lock = threading.Lock()

    def send(self, item: Item) -> bool:
        with self._lock:
            self.sent.append(item.relpath)
        if error := self._fails.get(item.relpath):
            raise error
        return item.relpath != "item1"

    def send_readme(self) -> None:
        self.is_readme_sent = True

    def send_block_hashes(self) -> None:
        self.are_hashes_sent = self.is_readme_sent


@pytest.mark.parametrize("count", [0, 1, 2, THREADS, 3 * THREADS])
def test_every_item_is_sent_once_and_what_is_beside_them_after(count: int) -> None:
    all_items = items(*range(count))
    taken: list[Item] = []
    sender: Any = FakeSender()
    before = threading.active_count()

    _send_all(sender, SimpleNamespace(), lambda: iter(all_items), taken.append)  # type: ignore[arg-type]

    assert sorted(sender.sent) == sorted(item.relpath for item in all_items)
    assert {item.relpath for item in taken} == set(sender.sent) - {"item1"}
    assert sender.are_hashes_sent
    assert threading.active_count() == before


def test_first_failure_ends_all_and_counts_more_than_what_it_cancels() -> None:
    all_items = items(*range(3 * THREADS))
    error = Unreachable("the store is away")
    ended = threading.Event()
    sender: Any = FakeSender({"item0": Cancelled("ended"), "item1": error})
    tally: Any = SimpleNamespace(end=ended.set)

    with pytest.raises(Unreachable) as raised:
        _send_all(sender, tally, lambda: iter(all_items), lambda item: None)

    assert raised.value is error
    assert ended.is_set()
    assert not sender.is_readme_sent
