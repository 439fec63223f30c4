"""What is compared with the manifest, when, and who may then have it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.checksums import checksums
from dserverfs.base.errors import IntegrityError
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.open_item import OpenItem
from tests.support.faulty_store import FaultyStore, faulty_store
from tests.support.patience import LATE_S
from tests.support.reading_world import CONTENT, World, wrong_bytes

wrong_is_said = pytest.mark.expects_log("does not have the manifest's hash")

LAST = len(CONTENT) - 1
IN_ORDER = list(range(0, len(CONTENT), BLOCK_SIZE))
ORDERS = {
    "in order": IN_ORDER,
    "backwards": IN_ORDER[::-1],
    "the end first": [IN_ORDER[-1], *IN_ORDER[:-1]],
    "shuffled": random.Random(3).sample(IN_ORDER, len(IN_ORDER)),
}


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as store:
        yield store


def read(world: World, content: ItemContent, order: list[int] = IN_ORDER) -> bytes:
    """Read an item block by block and return it."""
    item = OpenItem(world.reader, content)
    pieces = {start: item.read(start, BLOCK_SIZE) for start in order}
    world.reader.flush()
    return b"".join(pieces[start] for start in sorted(pieces))


def read_when_dropped(world: World, content: ItemContent, order: list[int]) -> bytes:
    """As `read`; begin anew as long as wrong bytes are just being dropped, behind us."""
    end = time.monotonic() + LATE_S
    while True:
        try:
            return read(world, content, order)
        except IntegrityError:
            assert time.monotonic() < end


def damage(store: FaultyStore, place: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[place] ^= 1
    store.content = bytes(damaged)
    store.etag = f'"damaged at {place}"'


# Shared with whoever has the same content


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_item_that_was_read_whole_is_fetched_once_for_every_dataset(
    store: FaultyStore, tmp_path: Path, order: list[int]
) -> None:
    world = World(store, tmp_path / "blocks")
    assert read(world, world.content(key="dserver://one/i"), order) == CONTENT
    world.close()
    fetched = len(store.requests)

    other = World(store, tmp_path / "blocks")
    assert read(other, other.content(key="dserver://two/j")) == CONTENT

    assert len(store.requests) == fetched
    other.close()


def test_item_of_one_block_is_fetched_once_for_every_dataset(
    store: FaultyStore, tmp_path: Path
) -> None:
    store.content = CONTENT[:5000]
    world = World(store, tmp_path / "blocks")
    for key in ("dserver://one/i", "dserver://two/j"):
        assert read(world, world.content(5000, key), [0]) == CONTENT[:5000]

    assert len(store.requests) == 1
    world.close()


def test_item_that_was_read_in_part_serves_no_other_dataset(
    store: FaultyStore, tmp_path: Path
) -> None:
    world = World(store, tmp_path / "blocks")
    for key in ("dserver://one/i", "dserver://two/j"):
        assert OpenItem(world.reader, world.content(key=key)).read(0, 10) == CONTENT[:10]
        world.reader.flush()

    starts = [request["Range"].split("-")[0] for request in store.requests]
    assert starts.count("bytes=0") == 2
    world.close()


def test_without_verification_nothing_is_shared(store: FaultyStore, tmp_path: Path) -> None:
    world = World(store, tmp_path / "blocks", Policy.OFF)
    read(world, world.content(key="dserver://one/i"))
    world.close()
    fetched = len(store.requests)

    other = World(store, tmp_path / "blocks", Policy.OFF)
    assert read(other, other.content(key="dserver://two/j")) == CONTENT

    assert len(store.requests) == 2 * fetched
    other.close()


def test_same_hash_and_another_size_is_another_content(store: FaultyStore, tmp_path: Path) -> None:
    world = World(store, tmp_path / "blocks")
    read(world, world.content())
    world.reader.flush()
    shorter = replace(world.content(key="dserver://two/j"), size_in_bytes=BLOCK_SIZE)

    with pytest.raises(IntegrityError):
        OpenItem(world.reader, shorter).read(0, 10)
    world.close()


# Compared once


def test_item_compared_once_is_not_hashed_again_by_the_next_process(
    store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, tmp_path / "blocks")
    read(world, world.content())
    world.close()

    class Never:
        """A hasher that nothing is to be hashed with."""

        def update(self, data: object) -> None:
            raise AssertionError("hashed again")

        def hexdigest(self) -> str:
            raise AssertionError("hashed again")

    def none(hash_function: str) -> None:
        raise AssertionError("hashed again")

    again = World(store, tmp_path / "blocks", Policy.STRICT, make_hasher=lambda name: Never())
    monkeypatch.setattr("dserverfs.base.hashes.hasher_of", none)
    assert read(again, again.content()) == CONTENT
    again.close()


def test_evicted_block_is_fetched_again_and_the_others_are_not(
    store: FaultyStore, tmp_path: Path
) -> None:
    world = World(store, tmp_path / "blocks")
    content = world.content()
    read(world, content)
    world.close()
    store.requests.clear()
    again = World(store, tmp_path / "blocks")
    again.cache.drop([BlockKey(content.content_key, 2)])

    assert read(again, content) == CONTENT

    assert [request["Range"] for request in store.requests] == [
        f"bytes={2 * BLOCK_SIZE}-{3 * BLOCK_SIZE - 1}"
    ]
    again.reader.flush()
    assert again.reader.has_all_verified(content)
    again.close()


@wrong_is_said
def test_item_fetched_without_verification_is_compared_when_it_is_read_with(
    store: FaultyStore, tmp_path: Path
) -> None:
    right = World(store, tmp_path / "blocks").content()
    damage(store, 77)
    careless = World(store, tmp_path / "blocks", Policy.OFF)
    assert read(careless, right) != CONTENT
    careless.close()

    careful = World(store, tmp_path / "blocks")
    with pytest.raises(IntegrityError):
        read(careful, right)
    careful.close()


# No whole item that is wrong


@wrong_is_said
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("place", [0, 2 * BLOCK_SIZE, LAST])
def test_reader_of_a_wrong_item_does_not_get_all_of_it_in_whatever_order(
    store: FaultyStore, tmp_path: Path, order: list[int], place: int
) -> None:
    world = World(store, tmp_path / "blocks")
    right = world.content()
    damage(store, place)

    with pytest.raises(IntegrityError):
        read(world, right, order)

    store.content = CONTENT
    store.etag = '"mended"'
    assert read_when_dropped(world, right, order) == CONTENT
    world.close()


@wrong_is_said
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_reader_without_a_disk_to_read_back_from_is_told_all_the_same(
    store: FaultyStore, tmp_path: Path, order: list[int]
) -> None:
    world = without_disk(store, tmp_path, Policy.COMPLETE)
    right = world.content()
    damage(store, 5)

    with pytest.raises(IntegrityError):
        read(world, right, order)
    world.close()


@wrong_is_said
def test_those_who_have_a_wrong_item_open_are_told(store: FaultyStore, tmp_path: Path) -> None:
    world = World(store, tmp_path / "blocks")
    right = world.content()
    damage(store, 5)
    told, told_too_late = threading.Event(), threading.Event()
    item = OpenItem(world.reader, right, told.set)
    OpenItem(world.reader, right, told_too_late.set).close()

    with pytest.raises(IntegrityError):
        list(map(item.read, IN_ORDER, [BLOCK_SIZE] * 6))

    assert told.wait(LATE_S)
    assert not told_too_late.is_set()
    world.close()


def test_part_of_a_wrong_item_is_not_held_up(store: FaultyStore, tmp_path: Path) -> None:
    world = World(store, tmp_path / "blocks")
    right = world.content()
    damage(store, LAST)

    assert OpenItem(world.reader, right).read(3 * BLOCK_SIZE, 10)
    world.close()


# Fetched again


# The polynomial of CRC-32 itself: added to any bytes it leaves their CRC-32 as it is.
SAME_CRC = bytes.fromhex("410671db01")


def forge(store: FaultyStore, place: int) -> None:
    """Change bytes of the stored object so that neither checksums nor its ETag tell."""
    forged = bytearray(CONTENT)
    for index, byte in enumerate(SAME_CRC, place):
        forged[index] ^= byte
    assert checksums(forged) == checksums(CONTENT)
    store.content = bytes(forged)


def without_disk(store: FaultyStore, tmp_path: Path, policy: Policy) -> World:
    """Return a world in which every block is fetched again that is not among the last two."""
    return World(
        store, tmp_path / "blocks", policy, max_memory_in_bytes=2 * BLOCK_SIZE, cache_size=0
    )


@pytest.mark.expects_log("block 1 does not have its hash; fetched once more")
@pytest.mark.parametrize("policy", [Policy.COMPLETE, Policy.STRICT])
@pytest.mark.parametrize(
    "order", [ORDERS["in order"], ORDERS["shuffled"]], ids=["in order", "shuffled"]
)
@pytest.mark.parametrize("same_handle", [True, False], ids=["same handle", "opened again"])
def test_forged_block_that_is_fetched_again_is_compared_as_the_first_one_was(
    store: FaultyStore,
    tmp_path: Path,
    order: list[int],
    policy: Policy,
    same_handle: bool,
) -> None:
    world = without_disk(store, tmp_path, policy)
    content = world.content()
    item = OpenItem(world.reader, content)
    assert b"".join(item.read(start, BLOCK_SIZE) for start in IN_ORDER) == CONTENT
    world.reader.flush()

    forge(store, BLOCK_SIZE + 99)
    again = item if same_handle else OpenItem(world.reader, content)
    pieces = (again.read(start, BLOCK_SIZE) for start in order)
    got: list[bytes] = []
    with pytest.raises(IntegrityError):
        got.extend(pieces)
    assert got == [CONTENT[at : at + BLOCK_SIZE] for at in order[: len(got)]]
    world.close()


@pytest.mark.parametrize("policy", [Policy.COMPLETE, Policy.STRICT])
def test_right_block_that_is_fetched_again_does_not_have_the_others_fetched(
    store: FaultyStore, tmp_path: Path, policy: Policy
) -> None:
    world = without_disk(store, tmp_path, policy)
    item = OpenItem(world.reader, world.content())
    assert b"".join(item.read(start, BLOCK_SIZE) for start in IN_ORDER) == CONTENT
    world.reader.flush()
    store.requests.clear()

    assert item.read(2 * BLOCK_SIZE, 10) == CONTENT[2 * BLOCK_SIZE : 2 * BLOCK_SIZE + 10]

    assert len(store.requests) == 1
    world.close()


# Strict


def strict(store: FaultyStore, tmp_path: Path) -> World:
    return World(store, tmp_path / "blocks", Policy.STRICT)


@wrong_is_said
@pytest.mark.parametrize("place", [0, 2 * BLOCK_SIZE, LAST])
def test_strict_hands_out_no_byte_of_a_wrong_item(
    store: FaultyStore, tmp_path: Path, place: int
) -> None:
    world = strict(store, tmp_path)
    right = world.content()
    damage(store, place)

    for start in (0, 3 * BLOCK_SIZE, LAST):
        with pytest.raises(IntegrityError):
            OpenItem(world.reader, right).read(start, 1)

    store.content = CONTENT
    store.etag = '"mended"'
    assert read_when_dropped(world, right, [LAST]) == CONTENT[-1:]
    world.close()


def test_strict_fetches_each_block_once(store: FaultyStore, tmp_path: Path) -> None:
    world = strict(store, tmp_path)

    assert read(world, world.content(), ORDERS["shuffled"]) == CONTENT

    blocks = [
        block
        for first, last in (
            request["Range"].removeprefix("bytes=").split("-") for request in store.requests
        )
        for block in range(int(first) // BLOCK_SIZE, int(last) // BLOCK_SIZE + 1)
    ]
    assert sorted(blocks) == list(range(6))
    world.close()


@pytest.mark.expects_log("fetched once more")
def test_strict_refuses_a_wrong_item_of_one_block(store: FaultyStore, tmp_path: Path) -> None:
    store.content = CONTENT[:5000]
    store.faults = [wrong_bytes, wrong_bytes]
    world = strict(store, tmp_path)

    with pytest.raises(IntegrityError):
        OpenItem(world.reader, world.content(5000)).read(0, 1)
    world.close()


def test_strict_works_without_a_disk(store: FaultyStore, tmp_path: Path) -> None:
    world = without_disk(store, tmp_path, Policy.STRICT)

    assert read(world, world.content(), ORDERS["shuffled"]) == CONTENT
    world.close()


@wrong_is_said
def test_strict_hands_out_parts_of_what_is_larger_than_its_limit(
    store: FaultyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = strict(store, tmp_path)
    reader = world.new_reader(verify=Policy.STRICT, strict_limit_in_bytes=len(CONTENT) - 1)
    right = world.content()
    damage(store, 0)

    assert OpenItem(reader, right).read(LAST, 1) == CONTENT[-1:]
    with pytest.raises(IntegrityError):
        list(map(OpenItem(reader, right).read, IN_ORDER, [BLOCK_SIZE] * 6))
    assert caplog.text.count("handed out uncompared") == 1
    reader.close()
    world.close()


def test_strict_refuses_what_it_cannot_compare(store: FaultyStore, tmp_path: Path) -> None:
    world = strict(store, tmp_path)
    unknown = replace(world.content(), hash_function="crc_of_the_moon")

    with pytest.raises(IntegrityError, match="crc_of_the_moon"):
        OpenItem(world.reader, unknown).read(0, 1)
    world.close()


def test_unknown_hash_function_is_read_uncompared(store: FaultyStore, tmp_path: Path) -> None:
    world = World(store, tmp_path / "blocks")
    unknown = replace(world.content(), hash_function="crc_of_the_moon")

    assert read(world, unknown) == CONTENT
    world.close()


@pytest.mark.expects_log(r"more/data\.bin.*(does not have the manifest's hash|fetched once more)")
@pytest.mark.parametrize("size", [5000, len(CONTENT)], ids=["one block", "several"])
def test_wrong_item_is_named_by_its_path(store: FaultyStore, tmp_path: Path, size: int) -> None:
    store.content = CONTENT[:size]
    world = World(store, tmp_path / "blocks")
    content = replace(world.content(size), relpath_of=lambda: "more/data.bin")
    store.content = bytes(size)
    store.etag = '"another"'

    with pytest.raises(IntegrityError, match=r"\(n\): more/data\.bin"):
        read(world, content, list(range(0, size, BLOCK_SIZE)))
    world.close()


def test_strict_names_large_items_once_and_keeps_no_more_names_than_it_may(
    store: FaultyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(
        store, tmp_path / "blocks", Policy.STRICT, strict_limit_in_bytes=1, max_named_large=2
    )
    items = [world.content(key=f"key{number}") for number in (0, 0, 1, 2, 0)]
    for item in items:
        assert OpenItem(world.reader, item).read(0, 1) == CONTENT[:1]

    # The third item takes the place of the others, of which the first is named once more.
    assert caplog.text.count("handed out uncompared") == 4
    world.close()


@pytest.mark.expects_log("damaged block is fetched again")
def test_block_that_is_damaged_while_it_is_hot_is_fetched_again_to_compare_the_item(
    store: FaultyStore, tmp_path: Path
) -> None:
    world = World(store, tmp_path / "blocks", cache_size=1 << 30)
    read(world, world.content(), [IN_ORDER[2]])
    world.close()

    other = World(store, tmp_path / "blocks", read_timeout_s=LATE_S)
    item = OpenItem(other.reader, other.content())
    # In its file, and not hashed yet: those before it come first.
    start = 2 * BLOCK_SIZE
    assert item.read(start, 10) == CONTENT[start : start + 10]
    files = {path.stat().st_ino: path for path in (tmp_path / "blocks").glob("[0-9a-f]/*")}
    for path in files.values():
        with path.open("r+b") as file:
            for place in range(100_000, path.stat().st_size, BLOCK_SIZE):
                file.seek(place)
                file.write(b"damage")
    pieces = [item.read(start, 10) for start in IN_ORDER]  # the last has all of it compared

    assert pieces == [CONTENT[start : start + 10] for start in IN_ORDER]
    other.close()
