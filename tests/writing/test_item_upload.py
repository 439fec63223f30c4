"""Single items on their way to the store, and files that change; with a store that is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dserverfs.base.errors import Cancelled, DserverfsError, Garbled, ItemChanged, StorageRefused
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import Item, identifier_of
from dserverfs.base.progress import Progress
from dserverfs.remote.puts import FilePart
from dserverfs.remote.upload_urls import UploadUrl, UploadUrls
from dserverfs.writing.upload.item_upload import Sender
from dserverfs.writing.upload.put_retry import ATTEMPTS, Tally
from tests.support.block_hashes import object_of
from tests.support.local_uploads import local_dataset

OTHER_CONTENT = StorageRefused("400", code="BadDigest")
SAS = "?sv=2022-11-02&sig=secret"


class Bench:
    """A sender of local files to a store that notes what it gets, and fails as it is told."""

    def __init__(self, directory: Path, contents: Mapping[str, bytes], query: str = "") -> None:
        self.root = directory / "items"
        self.local = local_dataset(self.root, contents)
        self.failures: list[DserverfsError] = []
        self.at_put: Callable[[], None] = lambda: None
        self.puts: dict[str, bytes] = {}
        self.headers: dict[str, Mapping[str, str]] = {}
        self.urls = UploadUrls(
            uri="s3://b/u",
            readme=UploadUrl(f"http://store/README{query}", {}),
            items={
                item.identifier: UploadUrl(f"http://store/{item.relpath}{query}", {})
                for item in self.local.items.values()
            },
            in_parts=frozenset(),
            stored=frozenset(),
            good_until_s=float("inf"),
            block_hashes=UploadUrl("http://store/hashes", {}),
        )
        announcement: Any = SimpleNamespace(
            urls=lambda: self.urls, renewed=lambda refused: self.urls, routes=None
        )
        self.seen: list[Progress] = []
        sizes = [item.size_in_bytes for item in self.local.items.values()]
        self.tally = Tally(sizes, self.seen.append)
        self.tally.wait = lambda seconds: None  # type: ignore[method-assign]
        storage: Any = SimpleNamespace(write=self._write)
        self.sender = Sender(storage, announcement, self.local, self.tally)
        self.sender.note_files()

    def _write(
        self, url: str, headers: Mapping[str, str], content: FilePart | bytes, on_progress: Any
    ) -> Mapping[str, str]:
        if isinstance(content, FilePart):
            content = os.pread(content.descriptor, content.length, content.offset)
        if self.failures:
            raise self.failures.pop(0)
        on_progress(len(content))
        name = url.removeprefix("http://store/").partition("?")[0]
        self.puts[name], self.headers[name] = content, headers
        self.at_put()
        return {"ETag": "e"}

    def item(self, relpath: str) -> Item:
        return self.local.items[identifier_of(relpath)]


CONTENTS = {"a": b"content", "empty": b"", "sub/b": b"more"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, CONTENTS)


def test_each_item_is_put_whole_and_counted(bench: Bench) -> None:
    assert all(bench.sender.send(item) for item in bench.local.items.values())
    bench.sender.send_readme()

    assert bench.puts == {**CONTENTS, "README": bench.local.readme}
    assert bench.seen[-1] == (11, 11, 3, 3)
    bench.sender.check_files()


@pytest.mark.parametrize("already", [0, 7])
def test_item_in_parts_is_taken_from_us_unless_some_of_it_was_there(
    bench: Bench, already: int
) -> None:
    asked: list[tuple[object, ...]] = []

    def send(*arguments: Any) -> int:
        asked.append(arguments[:2])
        return already

    bench.sender._parts.send = send  # type: ignore[assignment,method-assign]
    bench.urls = bench.urls._replace(in_parts=frozenset({identifier_of("a")}))

    assert bench.sender.send(bench.item("a")) == (not already)

    assert asked == [("s3://b/u", bench.item("a"))]
    assert bench.seen[-1] == (already, 11, 1, 3)
    assert bench.puts == {}


def test_blob_of_azure_is_put_as_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CONTENTS, SAS)

    for item in bench.local.items.values():
        bench.sender.send(item)
    bench.sender.send_readme()

    assert bench.puts == {**CONTENTS, "README": bench.local.readme}
    for name in bench.puts:
        assert bench.headers[name]["x-ms-blob-type"] == "BlockBlob"
        assert ("Content-MD5" in bench.headers[name]) == (name != "README")


@pytest.mark.parametrize("query", ["", SAS])
def test_file_that_is_as_it_was_hashed_is_sent_again(tmp_path: Path, query: str) -> None:
    bench = Bench(tmp_path, CONTENTS, query)
    bench.failures = [OTHER_CONTENT] * 2
    assert bench.sender.send(bench.item("a"))

    bench.failures = [OTHER_CONTENT] * ATTEMPTS
    with pytest.raises(Garbled):
        bench.sender.send(bench.item("sub/b"))


def test_file_that_never_had_its_hash_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CONTENTS)
    bench.failures = [OTHER_CONTENT]
    wrong = replace(bench.item("a"), hash="0" * 32)

    with pytest.raises(ItemChanged, match=r"^a: "):
        bench.sender.send(wrong)


def test_comparing_ends_when_all_is_to_end(bench: Bench) -> None:
    bench.failures = [OTHER_CONTENT]
    bench.tally.end()

    with pytest.raises(Cancelled):
        bench.sender.send(bench.item("a"))


# Files that change


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def write_anew(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def date_anew(path: Path) -> None:
    os.utime(path, ns=(5, 5))


CHANGES = [grow, write_anew, date_anew, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_file_that_changed_before_it_is_sent_is_named(
    bench: Bench, change: Callable[[Path], None]
) -> None:
    change(bench.root / "sub/b")
    bench.sender.send(bench.item("a"))

    for look in (bench.sender.check_files, lambda: bench.sender.send(bench.item("sub/b"))):
        with pytest.raises(ItemChanged, match=r"^sub/b: ") as failure:
            look()
        assert failure.value.relpath == "sub/b"
    assert bench.puts.keys() == {"a"}


@pytest.mark.parametrize("change", [grow, date_anew])
def test_file_that_changes_while_it_is_sent_is_named(
    bench: Bench, change: Callable[[Path], None]
) -> None:
    bench.at_put = lambda: change(bench.root / "a")

    with pytest.raises(ItemChanged, match=r"^a: was changed during the upload"):
        bench.sender.send(bench.item("a"))
    assert not any(progress.items_done for progress in bench.seen)


@pytest.mark.parametrize("change", [grow, Path.unlink])
def test_file_that_is_not_as_large_as_announced_is_named_at_the_beginning(
    bench: Bench, change: Callable[[Path], None]
) -> None:
    change(bench.root / "sub/b")

    with pytest.raises(ItemChanged, match=r"^sub/b: (has 5 bytes and not 4|cannot be read)"):
        bench.sender.note_files()


def test_no_file_is_left_open(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))

    bench.sender.send(bench.item("a"))
    date_anew(bench.root / "sub/b")
    with contextlib.suppress(ItemChanged):
        bench.sender.send(bench.item("sub/b"))

    assert len(os.listdir("/proc/self/fd")) == before


# Block hashes

LARGE = {"a": b"x" * (BLOCK_SIZE + 5), "b": b"small"}


@pytest.fixture
def large(tmp_path: Path) -> Bench:
    return Bench(tmp_path, LARGE)


def test_hashes_of_blocks_are_read_from_the_files_and_stored(large: Bench) -> None:
    large.sender.send_block_hashes()

    assert large.puts == {"hashes": object_of(LARGE)}
    assert large.seen == [], "they are no bytes of items"


def test_server_that_takes_none_gets_none(large: Bench) -> None:
    large.urls = large.urls._replace(block_hashes=None)
    (large.root / "a").unlink()  # nor is anything read for it

    large.sender.send_block_hashes()

    assert large.puts == {}


def test_server_that_takes_none_any_more_is_no_failure(large: Bench) -> None:
    def replaced() -> UploadUrls:
        urls, large.urls = large.urls, large.urls._replace(block_hashes=None)
        return urls

    large.sender._announcement.urls = replaced  # type: ignore[method-assign]

    large.sender.send_block_hashes()

    assert large.puts == {}


def test_file_whose_blocks_are_not_the_announced_ones_is_named(large: Bench) -> None:
    with (large.root / "a").open("r+b") as file:
        file.write(b"other")
    large.sender.note_files()

    with pytest.raises(ItemChanged, match=r"^a: "):
        large.sender.send_block_hashes()
    assert large.puts == {}


def test_reading_blocks_ends_when_all_is_to_end(large: Bench) -> None:
    large.tally.end()

    with pytest.raises(Cancelled):
        large.sender.send_block_hashes()
