"""Items whose blocks have hashes: each block is compared before anybody gets a byte of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dserverfs.base.errors import IntegrityError, Unreachable
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading import hash_pages
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import FaultyStore, faulty_store
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, Hashes, World

BLOCKS = -(-len(CONTENT) // BLOCK_SIZE)
ONCE_MORE = "does not have its hash; fetched once more"
wrong_block = pytest.mark.expects_log(ONCE_MORE)


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as store:
        yield store


@pytest.fixture
def hashes() -> Hashes:
    return Hashes(CONTENT)


class HashedWorld(World):
    """A world whose items have block hashes, which the test gives or keeps back."""

    def __init__(
        self,
        store: FaultyStore,
        directory: Path,
        hashes: Hashes,
        verify: Policy = Policy.COMPLETE,
        **more: Any,
    ) -> None:
        super().__init__(store, directory, verify, block_hashes=hashes, **more)

    def open(self, key: str = "key") -> OpenItem:
        return OpenItem(self.reader, self.content(len(self.store.content), key))

    def close(self) -> None:
        """Wait for what is read ahead: a wrong block there is told of in this test, too."""
        self.reader.flush()
        super().close()


def flip(store: FaultyStore, place: int) -> None:
    """Flip a bit of the stored object."""
    damaged = bytearray(CONTENT)
    damaged[place] ^= 1
    store.content = bytes(damaged)


def ranges(store: FaultyStore) -> list[str]:
    return [request["Range"].removeprefix("bytes=") for request in store.requests]


reads = st.lists(
    st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(1, 2 * BLOCK_SIZE)),
    min_size=1,
    max_size=6,
)


@wrong_block
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(place=st.integers(0, len(CONTENT) - 1), reads=reads)
def test_no_read_in_any_order_gets_a_byte_of_a_wrong_block(
    tmp_path_factory: pytest.TempPathFactory, place: int, reads: list[tuple[int, int]]
) -> None:
    wrong = place // BLOCK_SIZE
    with faulty_store(CONTENT) as store:
        flip(store, place)
        world = HashedWorld(store, tmp_path_factory.mktemp("blocks") / "b", Hashes(CONTENT))
        item = world.open()
        for offset, size in reads:
            end = min(offset + size, len(CONTENT))
            if offset // BLOCK_SIZE <= wrong <= (end - 1) // BLOCK_SIZE:
                with pytest.raises(IntegrityError, match=f"block {wrong} "):
                    item.read(offset, size)
            else:
                assert item.read(offset, size) == CONTENT[offset:end]
        world.close()


@wrong_block
def test_wrong_block_is_fetched_once_more_and_the_rest_once(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    content = world.content()
    flip(store, 2 * BLOCK_SIZE)
    item = OpenItem(world.reader, content)
    first, wrong, last = 0, 2 * BLOCK_SIZE, 5 * BLOCK_SIZE
    assert item.read(first, 5) == CONTENT[:5]
    with pytest.raises(IntegrityError):
        item.read(wrong, 5)
    assert item.read(last, 5) == CONTENT[last : last + 5]
    asked_for_it = [range for range in ranges(store) if range.startswith(f"{wrong}-")]
    assert len(asked_for_it) == 2

    store.content = CONTENT

    assert item.read(0, len(CONTENT)) == CONTENT, "the same handle reads on"
    world.close()


@wrong_block
def test_block_that_is_wrong_once_is_not_missed(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    world = HashedWorld(store, tmp_path / "blocks", hashes)

    def wrong_once(handler: Any) -> None:
        flip(store, 7)
        handler.serve()
        store.content = CONTENT

    store.faults.append(wrong_once)

    assert world.open().read(0, 100) == CONTENT[:100]
    world.close()


def test_verified_blocks_are_kept_under_their_hashes_and_need_no_server(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    item = world.open()
    item.read(BLOCK_SIZE, 10)
    world.reader.flush()
    hash = hashes.hashes[32:64]
    assert world.cache.load(BlockKey.of_hash(hash), BLOCK_SIZE) is not None
    world.close()
    store.requests.clear()

    hashes.failure = Unreachable("away")
    again = HashedWorld(store, tmp_path / "blocks", hashes, Policy.STRICT)

    assert again.open().read(BLOCK_SIZE, 10) == CONTENT[BLOCK_SIZE : BLOCK_SIZE + 10]
    assert (store.requests, hashes.asked) == ([], 1)
    again.close()


def test_copy_with_one_changed_block_costs_that_block(
    store: FaultyStore, tmp_path: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "WAIT_S", LATE_S)
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    assert world.open().read(0, len(CONTENT)) == CONTENT
    world.reader.flush()
    world.close()
    changed = 3 * BLOCK_SIZE + 1
    flip(store, changed)
    store.requests.clear()

    other = HashedWorld(store, tmp_path / "blocks", Hashes(store.content))
    item = other.open("another item")
    # The hashes are not here before the first block.
    pieces = [item.read(start, BLOCK_SIZE) for start in range(0, len(CONTENT), BLOCK_SIZE)]

    assert b"".join(pieces) == store.content
    other.reader.flush()
    stored = {path.stat().st_ino for path in (tmp_path / "blocks").glob("?/*.blk")}
    assert len(stored) == 2, "all blocks of the first, and the one that is another"
    other.close()


def test_blocks_with_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    zeros = bytes(6 * BLOCK_SIZE)
    with faulty_store(zeros) as store:
        world = HashedWorld(store, tmp_path / "blocks", Hashes(zeros))
        item = world.open()
        for start in range(0, len(zeros), BLOCK_SIZE):
            assert item.read(start, BLOCK_SIZE) == bytes(BLOCK_SIZE)
        world.reader.flush()

        files = [*(tmp_path / "blocks").glob("?/*.blk")]
        assert len(files) == 1
        world.close()


def test_only_the_first_item_waits_for_hashes_that_are_slow(
    store: FaultyStore, tmp_path: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    hashes.may_answer.clear()
    monkeypatch.setattr(hash_pages, "WAIT_S", 0.05)
    assert world.open("first").read(0, 10) == CONTENT[:10]

    monkeypatch.setattr(hash_pages, "WAIT_S", 1000.0)

    assert world.open("second").read(0, 10) == CONTENT[:10]
    hashes.may_answer.set()
    world.close()


def test_hashes_that_are_slow_hold_nobody_up_and_are_compared_with_later(
    store: FaultyStore, tmp_path: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "WAIT_S", 0.05)
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    hashes.may_answer.clear()
    item = world.open()

    assert item.read(0, 10) == CONTENT[:10]

    assert world.reader.hashes.is_unverified(item.content)
    hashes.may_answer.set()
    world.reader.pages.wait()
    assert item.read(10, 10) == CONTENT[10:20]
    world.close()


@pytest.mark.expects_log("block 0 was read and does not have its hash")
def test_wrong_bytes_that_were_read_before_their_hash_came_are_told(
    store: FaultyStore, tmp_path: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "WAIT_S", 0.05)
    flip(store, 5)
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    hashes.may_answer.clear()
    told: list[bool] = []
    item = OpenItem(world.reader, world.content(), on_drop=lambda: told.append(True))
    assert item.read(0, 10) != CONTENT[:10]

    hashes.may_answer.set()
    world.reader.pages.wait()

    assert told == [True]
    with pytest.raises(IntegrityError, match="read wrong"):
        item.read(0, 10)
    world.close()


@pytest.mark.parametrize("are_there", [True, False])
def test_items_without_hashes_are_read_as_before(
    store: FaultyStore, tmp_path: Path, hashes: Hashes, are_there: bool
) -> None:
    hashes.are_there = False
    hashes.failure = Unreachable("away") if are_there else None
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    item = world.open()

    assert item.read(0, len(CONTENT)) == CONTENT
    assert item.read(0, len(CONTENT)) == CONTENT

    assert hashes.asked == 1, "not once for each block"
    assert world.reader.hashes.is_verified(item.content)
    world.close()


@wrong_block
def test_item_that_was_compared_as_a_whole_has_hashes_from_then_on(
    store: FaultyStore, tmp_path: Path
) -> None:
    world = World(store, tmp_path / "blocks")
    assert OpenItem(world.reader, world.content()).read(0, len(CONTENT)) == CONTENT
    world.reader.flush()
    same = world.content(key="of another dataset")
    world.cache.drop([BlockKey(same.content_key, 1)])
    world.close()
    flip(store, BLOCK_SIZE)

    again = World(store, tmp_path / "blocks")
    item = OpenItem(again.reader, same)

    with pytest.raises(IntegrityError, match="block 1 "):
        item.read(BLOCK_SIZE, 10)
    assert item.read(0, 10) == CONTENT[:10]
    again.close()


def test_strict_waits_for_no_more_than_the_blocks_that_are_read(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    world = HashedWorld(store, tmp_path / "blocks", hashes, Policy.STRICT, strict_limit_in_bytes=1)

    assert world.open().read(3 * BLOCK_SIZE, 10) == CONTENT[3 * BLOCK_SIZE : 3 * BLOCK_SIZE + 10]

    assert ranges(store) == [f"{3 * BLOCK_SIZE}-{4 * BLOCK_SIZE - 1}"]
    world.close()


def test_off_compares_nothing_and_asks_for_no_hashes(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    flip(store, 0)
    world = HashedWorld(store, tmp_path / "blocks", hashes, Policy.OFF)

    assert world.open().read(0, 10) == store.content[:10]

    assert hashes.asked == 0
    world.close()


def test_block_that_was_kept_uncompared_is_compared_when_its_hash_is_known(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    flip(store, 0)
    careless = World(store, tmp_path / "blocks", Policy.OFF)
    item = OpenItem(careless.reader, careless.content())
    assert item.read(0, 2 * BLOCK_SIZE) == store.content[: 2 * BLOCK_SIZE]
    careless.reader.flush()
    content = item.content
    careless.close()
    store.content = CONTENT
    store.requests.clear()

    world = HashedWorld(store, tmp_path / "blocks", hashes)
    world.reader.pages.request(content, 0)
    world.reader.pages.wait()
    item = OpenItem(world.reader, content)

    assert item.read(0, 2 * BLOCK_SIZE) == CONTENT[: 2 * BLOCK_SIZE]
    assert ranges(store) == [f"0-{BLOCK_SIZE - 1}"], "the right one is kept"
    world.reader.flush()
    assert world.cache.load(BlockKey.of_hash(hashes.hashes[32:64]), BLOCK_SIZE) is not None
    world.close()


@pytest.mark.expects_log(ONCE_MORE)
def test_hashes_that_are_wrong_themselves_are_asked_for_anew(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    right = hashes.hashes
    hashes.hashes = bytes(32) + right[32:]
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    world.open().read(BLOCK_SIZE, 10)
    hashes.hashes = right
    with pytest.raises(IntegrityError):
        world.open().read(0, 10)
    world.reader.pages.wait()

    assert world.open().read(0, 10) == CONTENT[:10]
    assert hashes.asked == 2
    world.close()


@wrong_block
def test_hashes_of_a_block_that_is_wrong_for_good_are_asked_for_once_a_while(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    item = world.open()
    flip(store, 0)
    for _ in range(5):
        with pytest.raises(IntegrityError):
            item.read(0, 10)
        world.reader.pages.wait()

    assert hashes.asked == 2
    world.close()


@wrong_block
def test_hashes_count_while_they_are_asked_for_anew(
    store: FaultyStore, tmp_path: Path, hashes: Hashes
) -> None:
    """No block is handed out uncompared because another one was wrong."""
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    item = world.open()
    item.read(2 * BLOCK_SIZE, 10)
    store.content = bytes(byte ^ 1 for byte in CONTENT)
    hashes.may_answer.clear()

    for block in (0, 1, 4):
        with pytest.raises(IntegrityError, match=f"block {block} "):
            item.read(block * BLOCK_SIZE, 10)

    hashes.may_answer.set()
    world.close()


def test_pages_stay_within_their_memory(
    store: FaultyStore, tmp_path: Path, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "MAX_MEMORY_BYTES", 3000)
    world = HashedWorld(store, tmp_path / "blocks", hashes)
    pages = world.reader.pages
    contents = [world.content(key=f"item {number}") for number in range(20)]
    for content in contents:
        pages.request(content, 0)
        pages.wait()
        pages.check()

    assert sum(pages.has_some(content) for content in contents) < 6
    chance = random.Random(1)
    for content in chance.sample(contents, 20):
        assert pages.find(content, [1]) == [hashes.hashes[32:64]], "the cache has them"
        pages.check()
    assert hashes.asked == 20
    pages.forget_item(contents[0])
    assert pages.find(contents[0], [0, 1]) == [None, None]
    pages.check()
    world.close()
