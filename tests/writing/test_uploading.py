"""The order of an upload: what is asked, sent and told, and when; with a server that is told."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    ItemChanged,
    NotFound,
    NotStored,
    TooLarge,
    Unreachable,
    Unsupported,
)
from dserverfs.base.model import Dataset, identifier_of
from dserverfs.base.progress import Progress
from dserverfs.remote.puts import FilePart
from dserverfs.remote.upload_urls import UploadUrl, UploadUrls
from dserverfs.writing.upload import uploader as uploader_module
from dserverfs.writing.upload.uploader import Uploader, has_same_items
from tests.support.few_threads import no_more_threads
from tests.support.local_uploads import local_dataset
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET

BASE = "s3://bucket"
CONTENTS = {"a": b"content", "b": b"", "sub/c": b"more"}
TOTAL = sum(map(len, CONTENTS.values()))


class Bench:
    """An uploader, and a server and store that note what happens, and fail as they are told."""

    def __init__(self, directory: Path, contents: Mapping[str, bytes] = CONTENTS) -> None:
        self.root = directory / "items"
        self.local = local_dataset(self.root, contents)
        self.uri = f"{BASE}/{self.local.admin_metadata['uuid']}"
        self.events: list[str] = []
        self.fails: dict[str, BaseException] = {}  # by event
        self.stored: set[str] = set()
        self.at_put: Callable[[str], None] = lambda name: None
        self.takes_parts = self.takes_block_hashes = True
        self.manifest: list[bytes] | None = None  # of what is registered, in pieces
        self.seen: list[Progress] = []
        routes: Any = SimpleNamespace(
            server_url="http://server",
            start=self._start,
            complete=lambda uri, count: self.happens(f"complete {uri} {count}"),
            takes_parts=lambda: self.takes_parts,
            takes_block_hashes=lambda: self.takes_block_hashes,
            place_of_block_hashes=lambda uri: UploadUrl("http://store/hashes", {}),
            complete_block_hashes=lambda uri: self.happens(f"complete hashes {uri}"),
        )
        self.resolver: Any = SimpleNamespace(
            uploads=routes, dataset=self._dataset, manifest_pieces=self._pieces
        )
        parts: Any = (self.resolver, SimpleNamespace(write=self._write))
        self.uploader = Uploader(*parts)

    def happens(self, event: str) -> None:
        self.events.append(event)
        if event in self.fails:
            raise self.fails[event]

    def upload(self, **options: Any) -> str:
        return self.uploader.upload(
            self.local,
            BASE,
            on_progress=self.seen.append,
            before_complete=lambda: self.happens("before complete"),
            on_taken=lambda item: self.happens(f"taken {item.relpath}"),
            on_registered=lambda: self.happens("registered"),
            **options,
        )

    def _start(self, base_uri: str, description: Mapping[str, Any], items: Any) -> UploadUrls:
        assert base_uri == BASE
        self.happens("start")
        return UploadUrls(
            uri=self.uri,
            readme=UploadUrl("http://store/README", {}),
            items={
                item.identifier: UploadUrl(f"http://store/{item.relpath}", {})
                for item in self.local.items.values()
            },
            in_parts=frozenset(),
            stored=frozenset(identifier_of(relpath) for relpath in self.stored),
            good_until_s=float("inf"),
            block_hashes=UploadUrl("http://store/hashes", {}),
        )

    def _write(
        self, url: str, headers: Mapping[str, str], content: FilePart | bytes, on_progress: Any
    ) -> Mapping[str, str]:
        name = url.removeprefix("http://store/")
        self.at_put(name)
        self.happens(f"put {name}")
        on_progress(content.length if isinstance(content, FilePart) else len(content))
        return {}

    def _dataset(self, uri: str) -> Dataset:
        assert uri == self.uri
        if self.manifest is None:
            raise NotFound("404")
        return DATASET

    def _pieces(self, dataset: Dataset) -> Iterator[bytes]:
        assert self.manifest is not None
        yield from self.manifest

    def register(self, change: Callable[[dict[str, Any]], None] = lambda items: None) -> None:
        """Have the server say that it has this dataset, with a change of its items."""
        items: dict[str, Any] = {
            item.identifier: {
                "relpath": item.relpath,
                "size_in_bytes": item.size_in_bytes,
                "hash": item.hash,
            }
            for item in self.local.items.values()
        }
        change(items)
        self.manifest = [json.dumps({"hash_function": "md5sum_hexdigest", "items": items}).encode()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


LAST = ["put README", "put hashes", "before complete"]


def test_dataset_is_registered_when_all_of_it_is_stored(bench: Bench) -> None:
    assert bench.upload() == bench.uri

    complete = f"complete {bench.uri} 3"
    assert bench.events[0] == "start"
    assert bench.events[-4:] == [*LAST, complete]
    assert sorted(bench.events[1:-4]) == sorted(
        f"{what} {relpath}" for relpath in CONTENTS for what in ("put", "taken")
    )
    assert bench.seen[-1] == (TOTAL, TOTAL, 3, 3)
    assert bench.uploader.sent_in_bytes == TOTAL


def test_what_is_stored_is_neither_sent_nor_taken_from_us(bench: Bench) -> None:
    bench.stored = {"a", "b"}

    bench.upload()

    assert bench.events == [
        *("start", "put sub/c", "taken sub/c", *LAST),
        f"complete {bench.uri} 3",
    ]
    assert bench.seen[-1] == (TOTAL, TOTAL, 3, 3)


@pytest.mark.parametrize("event", ["put a", "taken a", *LAST])
def test_failure_at_any_point_registers_nothing(bench: Bench, event: str) -> None:
    error = NotStored("no such bucket")
    bench.fails = {event: error}

    with pytest.raises(NotStored) as failure:
        bench.upload()

    assert failure.value is error
    assert not any(event.startswith("complete") for event in bench.events)


def test_first_failure_is_told_and_not_that_the_others_were_stopped_for_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {f"{number}": b"content" for number in range(8)})
    both = threading.Barrier(2)

    def fail_together(name: str) -> None:
        both.wait(LATE_S)
        if name != "0":
            raise Cancelled("stopped")
        raise NotStored("no such bucket")

    bench.at_put = fail_together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploader_module, "THREADS", 2)
        with pytest.raises(NotStored):
            bench.upload()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_items_are_sent_at_once_as_there_are_threads_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(uploader_module, "THREADS", threads)
    all_at_once = threading.Barrier(threads)
    names: set[str] = set()

    def together(name: str) -> None:
        if name in CONTENTS and len(names) < threads:
            names.add(threading.current_thread().name)
            all_at_once.wait(LATE_S)
        assert threads > 1 or threading.current_thread() is threading.main_thread()

    bench.at_put = together
    bench.upload()

    assert len(names) == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upload")]


@pytest.mark.parametrize("allowed", [0, 1])
def test_dataset_is_uploaded_with_the_threads_that_there_can_be(bench: Bench, allowed: int) -> None:
    with no_more_threads(allowed):
        assert bench.upload() == bench.uri

    assert bench.events[-1] == f"complete {bench.uri} 3"
    assert {f"taken {relpath}" for relpath in CONTENTS} < {*bench.events}


def test_stop_is_heeded_before_anything_is_announced_and_before_it_is_registered(
    bench: Bench,
) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        bench.upload(stop=stop)
    assert bench.events == []

    stop.clear()
    bench.at_put = lambda name: stop.set() if name == "hashes" else None
    with pytest.raises(Cancelled):
        bench.upload(stop=stop)
    assert "before complete" not in bench.events


def test_file_that_changed_after_it_was_sent_registers_nothing(bench: Bench) -> None:
    bench.at_put = lambda name: os.utime(bench.root / "a", (5, 5)) if name == "hashes" else None

    with pytest.raises(ItemChanged):
        bench.upload()
    assert "before complete" not in bench.events


# Registered already


def test_same_dataset_that_is_registered_is_success(bench: Bench) -> None:
    bench.fails = {"start": Conflict("registered")}
    bench.register()

    assert bench.upload() == bench.uri

    assert bench.events == ["start", "registered", "before complete"]


def test_conflict_with_what_is_not_registered_is_told(bench: Bench) -> None:
    conflict = bench.fails["start"] = Conflict("another upload")

    with pytest.raises(Conflict) as failure:
        bench.upload()

    assert failure.value is conflict
    assert bench.events == ["start"]


def change(relpath: str, /, **other: Any) -> Callable[[dict[str, Any]], None]:
    return lambda items: items[identifier_of(relpath)].update(other)


@pytest.mark.parametrize(
    "wrong",
    [
        change("a", hash="0" * 32),
        change("a", size_in_bytes=8),
        change("a", relpath="A"),
        change("a", hash=None),
        lambda items: items.pop(identifier_of("b")),
        lambda items: items.update({identifier_of("d"): {}}),
        lambda items: items.update({identifier_of("a"): "a"}),
        lambda items: items.update({identifier_of("b"): items.pop(identifier_of("a"))}),
    ],
)
def test_another_manifest_is_a_conflict(
    bench: Bench, wrong: Callable[[dict[str, Any]], None]
) -> None:
    bench.fails = {"start": Conflict("registered")}
    bench.register(wrong)

    with pytest.raises(Conflict, match="with other items") as failure:
        bench.upload()

    assert failure.value.uri == bench.uri
    assert bench.events == ["start"]


def test_case_of_a_hash_is_no_difference(bench: Bench) -> None:
    a_hash = bench.local.items[identifier_of("a")].hash
    bench.register(change("a", hash=a_hash.upper()))

    assert bench.uploader.is_registered(bench.local, bench.uri)


def test_item_that_is_there_twice_hides_none_that_is_not(bench: Bench) -> None:
    """As json has no objects with a name twice, this is written by hand."""
    bench.register(lambda items: items.pop(identifier_of("b")))
    assert bench.manifest is not None
    value = json.loads(bench.manifest[0])
    (first, entry), *_ = value["items"].items()
    again = f'"{first}": {json.dumps(entry)}, '
    pieces = json.dumps(value).replace('"items": {', '"items": {' + again).encode()

    class Twice:
        """Gives its items one by one, as a manifest in many pieces does."""

        def feed(self, piece: bytes) -> dict[str, Any]:
            return {first: entry}

        def close(self) -> dict[str, Any]:
            return dict(value["items"])

    bench.manifest = [pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploader_module, "ManifestStream", Twice)
        assert not has_same_items(bench.resolver, bench.local, DATASET)


def test_manifest_is_given_back_when_it_is_another_one(bench: Bench) -> None:
    ended: list[bool] = []

    def pieces(dataset: Dataset) -> Iterator[bytes]:
        try:
            yield b"{}"
            yield b"{}"
        finally:
            ended.append(True)

    class Other:
        def feed(self, piece: bytes) -> dict[str, Any]:
            assert not ended
            return {"0" * 40: {}}

    bench.resolver.manifest_pieces = pieces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploader_module, "ManifestStream", Other)
        assert not has_same_items(bench.resolver, bench.local, DATASET)
    assert ended == [True]


# Limits


@pytest.mark.parametrize("takes_parts", [True, False])
def test_largest_item_is_what_server_and_store_take(bench: Bench, takes_parts: bool) -> None:
    bench.takes_parts = takes_parts

    in_s3 = 5 * 1024**4 if takes_parts else 5 * 1024**3
    assert bench.uploader.max_item_bytes() == in_s3
    assert bench.uploader.max_item_bytes(BASE) == in_s3
    assert bench.uploader.max_item_bytes("azure://account/container") == 50_000 * 32 * 1024**2


@pytest.mark.parametrize(("limit", "is_taken"), [(6, False), (7, True)])
def test_item_of_the_largest_size_is_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int, is_taken: bool
) -> None:
    monkeypatch.setattr(uploader_module, "MAX_OBJECT_BYTES", limit)

    if is_taken:
        bench.upload()
    else:
        with pytest.raises(TooLarge, match=r"^a: has 7 bytes"):
            bench.upload()
        assert bench.events == []


# Block hashes of what is frozen


def test_block_hashes_are_added_once(bench: Bench) -> None:
    event = f"complete hashes {bench.uri}"

    def add() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"hashes")
            bench.uploader.add_block_hashes(bench.uri, file)

    add()
    assert bench.events == ["put hashes", event]

    bench.fails = {event: Conflict("it has them")}
    add()
    bench.fails = {event: Unreachable("away")}
    with pytest.raises(Unreachable):
        add()

    bench.events.clear()
    bench.takes_block_hashes = False
    with pytest.raises(Unsupported, match="keeps no block hashes"):
        add()
    assert bench.events == []
