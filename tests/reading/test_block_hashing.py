"""Items that are hashed while they are read, in as many threads as there are cores."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dserverfs.base.errors import IntegrityError, Unreachable
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading import block_hashing
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import FaultyStore, faulty_store
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, World

IN_ORDER = list(range(0, len(CONTENT), BLOCK_SIZE))


class _HeldHasher:
    """An MD5 that waits before its first update, and knows the threads that fed it."""

    def __init__(self, may_begin: threading.Event, order: list[_HeldHasher]) -> None:
        """Each update is added to `order`."""
        self._may_begin = may_begin
        self._order = order
        self._md5 = hashlib.md5()
        self.has_begun = threading.Event()
        self.threads: set[str] = set()

    def update(self, data: bytes | memoryview) -> None:
        self.has_begun.set()
        assert self._may_begin.wait(60)
        self._order.append(self)
        self.threads.add(threading.current_thread().name.partition("_")[0])
        self._md5.update(data)

    def hexdigest(self) -> str:
        return self._md5.hexdigest()


class Held(NamedTuple):
    """A reader of which the first block is being hashed, until `may_begin` is set."""

    store: FaultyStore
    world: World
    item: OpenItem
    first: bytes
    hasher: _HeldHasher
    may_begin: threading.Event


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    may_begin = threading.Event()
    hasher = _HeldHasher(may_begin, [])
    with faulty_store(CONTENT) as store:
        world = World(
            store, tmp_path / "blocks", read_timeout_s=LATE_S, make_hasher=lambda _: hasher
        )
        item = OpenItem(world.reader, world.content())
        first = item.read(0, BLOCK_SIZE)
        assert hasher.has_begun.wait(LATE_S)
        yield Held(store, world, item, first, hasher, may_begin)
        may_begin.set()
        world.close()


def test_item_is_hashed_while_another_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_hashing, "THREADS", 2)
    hashers: list[_HeldHasher] = []
    first_may_go_on, at_once = threading.Event(), threading.Event()
    at_once.set()

    def make(_: str) -> _HeldHasher:
        hashers.append(_HeldHasher(at_once if hashers else first_may_go_on, []))
        return hashers[-1]

    with faulty_store(CONTENT) as store:
        world = World(store, tmp_path / "blocks", read_timeout_s=LATE_S, make_hasher=make)
        first = OpenItem(world.reader, world.content(key="dserver://one/i"))
        for start in IN_ORDER[:-1]:
            first.read(start, BLOCK_SIZE)
        second = OpenItem(world.reader, world.content(key="dserver://two/j"))
        assert b"".join(second.read(start, BLOCK_SIZE) for start in IN_ORDER) == CONTENT
        assert not hashers[0].threads

        first_may_go_on.set()
        assert first.read(IN_ORDER[-1], BLOCK_SIZE) == CONTENT[IN_ORDER[-1] :]
        assert not any("compare" in hasher.threads for hasher in hashers[:2])
        world.close()


def test_no_more_is_fetched_ahead_than_can_be_hashed(held: Held) -> None:
    pieces = [held.first, held.item.read(BLOCK_SIZE, BLOCK_SIZE)]
    held.world.reader.flush()
    last = [int(request["Range"].partition("-")[2]) for request in held.store.requests]
    assert max(last) < 3 * BLOCK_SIZE

    held.may_begin.set()
    pieces += [held.item.read(start, BLOCK_SIZE) for start in IN_ORDER[2:]]
    assert b"".join(pieces) == CONTENT
    assert "compare" not in held.hasher.threads


def test_reader_far_from_what_is_hashed_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    monkeypatch.setattr(block_hashing, "FAR", 6)
    may_begin = threading.Event()
    hasher = _HeldHasher(may_begin, [])
    content = CONTENT * 3

    with faulty_store(content) as store:
        world = World(
            store, tmp_path / "blocks", read_timeout_s=LATE_S, make_hasher=lambda _: hasher
        )
        near, far = (OpenItem(world.reader, world.content(len(content))) for _ in range(2))
        near.read(0, BLOCK_SIZE)
        assert hasher.has_begun.wait(LATE_S)
        near.read(BLOCK_SIZE, BLOCK_SIZE)
        place = 8 * BLOCK_SIZE

        pieces = [far.read(at, BLOCK_SIZE // 2) for at in (place, place + BLOCK_SIZE // 2)]
        pieces.append(far.read(place + BLOCK_SIZE, BLOCK_SIZE))

        assert b"".join(pieces) == content[place : place + 2 * BLOCK_SIZE]
        may_begin.set()
        world.close()


def test_readers_whose_blocks_are_put_off_fail_when_the_mount_ends(held: Held) -> None:
    held.item.read(BLOCK_SIZE, BLOCK_SIZE)
    (awaited,) = held.item.request_blocks(3 * BLOCK_SIZE, 1)
    assert isinstance(awaited, Future)
    assert not awaited.done()

    held.world.reader.close()

    with pytest.raises(Unreachable):
        awaited.result(LATE_S)


class _Switching:
    """A lock; when a thread that hashes gives it back, another one goes on first."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._meanwhile = meanwhile

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        if threading.current_thread().name.startswith("verify"):
            self._meanwhile()


def test_block_that_comes_at_the_end_of_a_turn_is_hashed(tmp_path: Path) -> None:
    """Else whoever waits for the verdict waits as long as a read may take."""
    with faulty_store(CONTENT) as store:
        world = World(store, tmp_path / "blocks")
        content = world.content()
        item = OpenItem(world.reader, content)
        came: list[bytes] = []

        def next_comes() -> None:
            if not came:
                came.append(item.read(BLOCK_SIZE, BLOCK_SIZE))
                world.reader.filler.flush()  # until its arrival is noted

        comparing: Any = world.reader.verification._parts.hashing
        comparing._lock = _Switching(next_comes)
        item.read(0, 10)

        def is_hashed() -> bool:
            hashing = world.reader.hashes.hashing(content)
            return world.reader.hashes.is_verified(content) or (
                hashing is not None and hashing.next >= 2
            )

        end_s = time.monotonic() + LATE_S
        while not came or not is_hashed():
            assert time.monotonic() < end_s, "a block was forgotten"
            time.sleep(0.01)
        world.close()


@pytest.mark.expects_log(
    "does not have the manifest's hash|does not have its hash; fetched once|came twice, with"
)
@pytest.mark.parametrize(
    ("known", "forged", "is_right_first"),
    [
        *itertools.product([1, 2], [0, 1], [True]),
        *((known, forged, False) for known in (1, 2) for forged in range(known)),
    ],
)
def test_block_that_comes_again_with_other_bytes_is_not_the_one_that_was_hashed(
    tmp_path: Path, known: int, forged: int, is_right_first: bool
) -> None:
    """Of an item whose beginning was read, and hashed, and has left memory and cache since."""
    place = forged * BLOCK_SIZE + 99
    wrong = CONTENT[:place] + bytes([CONTENT[place] ^ 1]) + CONTENT[place + 1 :]
    first, second = (CONTENT, wrong) if is_right_first else (wrong, CONTENT)
    with faulty_store(CONTENT) as store:
        world = World(store, tmp_path, max_memory_in_bytes=2 * BLOCK_SIZE, cache_size=0)
        content = world.content()
        store.content = first
        beginning = OpenItem(world.reader, content)
        for start in IN_ORDER[:known]:
            beginning.read(start, BLOCK_SIZE)
        hashing = world.reader.hashes.hashing(content)
        assert hashing is not None
        with hashing.changed:
            assert hashing.changed.wait_for(lambda: hashing.next >= known, LATE_S)
        # In the place of those; the fetch ahead may find out meanwhile that the item is wrong.
        for start in IN_ORDER[3:5]:
            bytes_or_error(beginning, start, BLOCK_SIZE)
        beginning.close()
        world.reader.flush()
        store.content = second

        found = bytes_or_error(OpenItem(world.reader, content), 0, len(CONTENT))
        assert found is None or not is_right_first
        again = bytes_or_error(OpenItem(world.reader, content), 0, len(CONTENT))
        assert again == (None if is_right_first else CONTENT)
        world.close()


def bytes_or_error(item: OpenItem, offset: int, size: int) -> bytes | None:
    """Return bytes of the right content; None for an IntegrityError."""
    try:
        data = item.read(offset, size)
    except IntegrityError:
        return None
    assert data == CONTENT[offset : offset + size]
    return data


def test_items_are_hashed_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_hashing, "THREADS", 1)
    monkeypatch.setattr(block_hashing, "TURN", 1)
    may_begin = threading.Event()
    order: list[_HeldHasher] = []

    with faulty_store(CONTENT) as store:
        world = World(
            store, tmp_path / "blocks", make_hasher=lambda _: _HeldHasher(may_begin, order)
        )
        items = [
            OpenItem(world.reader, world.content(key=key))
            for key in ("dserver://one/i", "dserver://two/j")
        ]
        for item in items:  # and two blocks ahead
            item.read(0, BLOCK_SIZE)
            world.reader.flush()

        may_begin.set()
        for item in items:
            assert b"".join(item.read(start, BLOCK_SIZE) for start in IN_ORDER) == CONTENT
        assert [hasher is order[0] for hasher in order[:4]] == [True, False, True, False]
        world.close()
