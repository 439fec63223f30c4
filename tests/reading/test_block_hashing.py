"""Items that are hashed while they are read, in as many threads as there are cores."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading import block_hashing
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import faulty_store
from tests.support.reading_world import CONTENT, World

IN_ORDER = list(range(0, len(CONTENT), BLOCK_SIZE))


class _HeldHasher:
    """An MD5 that waits before its first update, and knows the threads that fed it."""

    def __init__(self, may_begin: threading.Event) -> None:
        self._may_begin = may_begin
        self._md5 = hashlib.md5()
        self.threads: set[str] = set()

    def update(self, data: bytes | memoryview) -> None:
        assert self._may_begin.wait(60)
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
        hashers.append(_HeldHasher(at_once if hashers else first_may_go_on))
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
