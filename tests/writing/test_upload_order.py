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
from dserverfs.base.progress import Progress
from dserverfs.remote.upload_urls import UploadUrl, UploadUrls
from dserverfs.writing.upload import block_hashes
from dserverfs.writing.upload import uploader as uploader_module
from dserverfs.writing.upload.azure import MAX_BLOB_BYTES
from dserverfs.writing.upload.put_retry import Tally
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
from dserverfs.writing.upload.url_source import Announcement


def dataset(**sizes: int) -> LocalDataset:
    items = ItemTable()
    for relpath, size in sizes.items():
        items.add(relpath, size, str(digest(MD5, relpath.encode())), 5, 5.0)
    admin = {"uuid": "u", "name": "n", "creator_username": "c", "frozen_at": 1.0}
    return LocalDataset(admin, b"", MD5, items, lambda item: Path(item.relpath), [], {}, {})


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


# From the announcement to the registration

URI = "s3://b/u"


class Noted:
    """An upload of OURS to "s3://b", and what is done for it, in turn."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        *,
        stored: str = "",
        refused: Exception | None = None,
        takes_hashes: bool = True,
        overlay: bool = False,
    ) -> None:
        """`stored` are the relpaths of what the server has; it refuses the announcement so."""
        self.done: list[str] = []
        self.sent_as: LocalDataset | None = None
        self.seen: list[Progress] = []
        self.stop = threading.Event()
        self.stops_at = ""
        self.registered: dict[str, Any] | None = None
        self._stored = frozenset(i.identifier for i in OURS.items.values() if i.relpath in stored)
        self._refused = refused
        routes = {
            "start": self._start,
            "complete": lambda uri, count: self._note(f"complete {uri} {count}"),
            "takes_block_hashes": lambda: takes_hashes,
            "takes_parts": lambda: False,
            "server_url": "http://server",
        }
        resolver: Any = SimpleNamespace(
            uploads=SimpleNamespace(**routes),
            dataset=self._dataset,
            manifest_pieces=lambda uri: Pieces(self.registered or {}),
        )
        self.uploader = Uploader(resolver, SimpleNamespace(), hash_overlay=overlay)  # type: ignore[arg-type]
        patch.setattr(uploader_module, "Sender", self._sender)
        patch.setattr(
            block_hashes,
            "with_overlay",
            lambda ours: ours._replace(overlays={"hashes": {}}),
        )

    def upload(self, ours: LocalDataset = OURS) -> str:
        return self.uploader.upload(
            ours,
            "s3://b",
            on_progress=self.seen.append,
            stop=self.stop,
            before_complete=lambda: self._note("before"),
            on_taken=lambda item: self._note(f"taken {item.relpath}"),
            on_registered=lambda: self._note("registered"),
        )

    def _note(self, what: str) -> None:
        self.done.append(what)
        if what == self.stops_at:
            self.stop.set()

    def _start(self, base_uri: str, description: dict[str, Any], items: object) -> UploadUrls:
        self._note("start")
        if self._refused is not None:
            raise self._refused
        url = UploadUrl("http://store", {})
        every = dict.fromkeys(OURS.items, url)
        return UploadUrls(URI, url, every, frozenset(), self._stored, float("inf"))

    def _dataset(self, uri: str) -> str:
        assert uri == URI
        if self.registered is None:
            raise NotFound("nothing is registered")
        return uri

    def _sender(
        self, storage: object, announced: Announcement, ours: LocalDataset, tally: Tally
    ) -> Any:
        self.sent_as = ours

        def send(item: Item) -> bool:
            tally.add_sent(item.size_in_bytes)
            tally.add_item()
            return True

        return SimpleNamespace(
            send=send,
            note_files=lambda: self._note("note files"),
            send_readme=lambda: self._note("README"),
            send_block_hashes=lambda: self._note("hashes"),
            check_files=lambda: self._note("check files"),
        )


@pytest.mark.parametrize("stored", ["", "a", "ac", "abc"])
def test_registration_follows_when_all_is_stored_and_compared(
    monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    noted = Noted(monkeypatch, stored=stored)

    assert noted.upload() == URI

    missing = [item for item in OURS.items.values() if item.relpath not in stored]
    items = sorted(f"taken {item.relpath}" for item in missing)
    after = ["README", "hashes", "check files", "before", f"complete {URI} 3"]
    done = [*noted.done[:2], *sorted(noted.done[2:-5]), *noted.done[-5:]]
    assert done == ["note files", "start", *items, *after]
    assert noted.seen[-1] == (6, 6, 3, 3)
    assert noted.uploader.sent_in_bytes == sum(item.size_in_bytes for item in missing)


@pytest.mark.parametrize(
    ("step", "next_step"),
    [("note files", "start"), ("hashes", "before"), ("check files", "before")],
)
def test_upload_that_is_stopped_registers_nothing(
    monkeypatch: pytest.MonkeyPatch, step: str, next_step: str
) -> None:
    noted = Noted(monkeypatch)
    noted.stops_at = step

    with pytest.raises(Cancelled):
        noted.upload()

    assert step in noted.done
    assert next_step not in noted.done


def test_dataset_that_is_registered_already_is_success_if_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = Noted(monkeypatch, refused=Conflict("is there"))
    with pytest.raises(Conflict, match="is there"):
        noted.upload()
    assert noted.done == ["note files", "start"]

    noted.registered = manifest()
    assert noted.upload() == URI
    assert noted.done[2:] == ["note files", "start", "registered", "before"]

    noted.registered["items"].popitem()
    with pytest.raises(Conflict, match="with other items"):
        noted.upload()


def test_dataset_with_an_item_that_is_too_large_is_not_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = Noted(monkeypatch)

    with pytest.raises(TooLarge):
        noted.upload(dataset(a=MAX_PUT_BYTES + 1))

    assert noted.done == []


@pytest.mark.parametrize("overlay", [True, False])
@pytest.mark.parametrize("takes_hashes", [True, False])
def test_hashes_are_an_overlay_if_that_is_wanted_and_the_server_keeps_no_object(
    monkeypatch: pytest.MonkeyPatch, overlay: bool, takes_hashes: bool
) -> None:
    noted = Noted(monkeypatch, overlay=overlay, takes_hashes=takes_hashes)

    noted.upload()

    assert noted.sent_as is not None
    assert bool(noted.sent_as.overlays) is (overlay and not takes_hashes)
