"""Items that are hashed while they are read, in as many threads as there are cores."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from dserverfs.base.errors import Unreachable
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading import block_hashing
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import faulty_store
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
        world = World(store, tmp_path / "blocks", read_timeout_s=3.0, make_hasher=make)
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


def test_no_more_is_fetched_ahead_than_can_be_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    may_begin = threading.Event()
    hasher = _HeldHasher(may_begin, [])

    with faulty_store(CONTENT) as store:
        world = World(store, tmp_path / "blocks", read_timeout_s=5.0, make_hasher=lambda _: hasher)
        item = OpenItem(world.reader, world.content())
        pieces = [item.read(0, BLOCK_SIZE)]
        assert hasher.has_begun.wait(20)
        pieces.append(item.read(BLOCK_SIZE, BLOCK_SIZE))
        world.reader.flush()
        last = [int(request["Range"].partition("-")[2]) for request in store.requests]
        assert max(last) < 3 * BLOCK_SIZE

        may_begin.set()
        pieces += [item.read(start, BLOCK_SIZE) for start in IN_ORDER[2:]]
        assert b"".join(pieces) == CONTENT
        assert "compare" not in hasher.threads
        world.close()


def test_reader_far_from_what_is_hashed_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    monkeypatch.setattr(block_hashing, "FAR", 6)
    may_begin = threading.Event()
    hasher = _HeldHasher(may_begin, [])
    content = CONTENT * 3

    with faulty_store(content) as store:
        world = World(store, tmp_path / "blocks", read_timeout_s=5.0, make_hasher=lambda _: hasher)
        near, far = (OpenItem(world.reader, world.content(len(content))) for _ in range(2))
        near.read(0, BLOCK_SIZE)
        assert hasher.has_begun.wait(20)
        near.read(BLOCK_SIZE, BLOCK_SIZE)
        place = 8 * BLOCK_SIZE

        pieces = [far.read(at, BLOCK_SIZE // 2) for at in (place, place + BLOCK_SIZE // 2)]
        pieces.append(far.read(place + BLOCK_SIZE, BLOCK_SIZE))

        assert b"".join(pieces) == content[place : place + 2 * BLOCK_SIZE]
        may_begin.set()
        world.close()


def test_readers_whose_blocks_are_put_off_fail_when_the_mount_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_hashing, "MAX_LAG", 1)
    may_begin = threading.Event()
    hasher = _HeldHasher(may_begin, [])

    with faulty_store(CONTENT) as store:
        world = World(store, tmp_path / "blocks", read_timeout_s=5.0, make_hasher=lambda _: hasher)
        item = OpenItem(world.reader, world.content())
        item.read(0, BLOCK_SIZE)
        assert hasher.has_begun.wait(20)
        item.read(BLOCK_SIZE, BLOCK_SIZE)
        (awaited,) = item.request_blocks(3 * BLOCK_SIZE, 1)
        assert isinstance(awaited, Future)
        assert not awaited.done()

        world.reader.close()

        with pytest.raises(Unreachable):
            awaited.result(20)
        may_begin.set()
        world.close()


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
