"""Pages of block hashes: each asked for once, kept, and not asked for again too soon."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base.block_hashes import HASH_BYTES, split
from dserverfs.base.errors import DserverfsError, IntegrityError, Unreachable
from dserverfs.base.items import BLOCK_SIZE, ItemContent
from dserverfs.base.model import BackendURI, Dataset, Identifier
from dserverfs.reading import hash_pages
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import PAGE
from dserverfs.reading.hash_pages import ABSENT_S, RETRY_S, HashPages, NoHashes
from tests.support.patience import LATE_S
from tests.support.reading_world import DATASET, Hashes

NUMBER = PAGE + 3  # of the blocks of an item, whose hashes are two pages
HASHES = random.Random(2).randbytes(NUMBER * HASH_BYTES)
EACH = split(HASHES)
OTHER_DATASET = replace(DATASET, uri=BackendURI("s3://b/other"))


def item(
    key: str = "item", blocks: int = NUMBER, dataset: Dataset = DATASET, hash: str = "0" * 32
) -> ItemContent:
    return ItemContent(
        key=key,
        dataset=dataset,
        identifier=Identifier("i" * 40),
        size_in_bytes=blocks * BLOCK_SIZE,
        hash_function="md5sum_hexdigest",
        hash=hash,
        neighbours=lambda limit: [],
    )


ITEM, ONE_BLOCK, TWO_BLOCKS = item(), item(blocks=1), item(blocks=2)
TWO_BLOCKS_OF_ANOTHER = item("another", 2)


class Source(Hashes):
    """Gives the hashes of `ITEM`, notes what it is asked for, and does wrong as it is told."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.hashes = HASHES
        self.ranges: list[tuple[int, int]] = []
        self.forgotten: list[Dataset] = []
        self.fault = False

    def fetch(self, content: ItemContent, first: int, count: int) -> bytes | None:
        self.ranges.append((first, count))
        if self.fault:
            raise ZeroDivisionError("ours")
        return super().fetch(content, first, count)

    def forget(self, dataset: Dataset) -> None:
        self.forgotten.append(dataset)


class Bench:
    """Pages with a cache, a source and a clock; `anew` is what the next process has."""

    def __init__(self, directory: Path) -> None:
        self.now_s = 1000.0
        self.source = Source()
        self.cache = BlockCache(directory)
        self.cache.open()
        self.pages = self.anew()

    def anew(self) -> HashPages:
        return HashPages(self.cache, self.source, clock_s=lambda: self.now_s)

    def fetched(self, content: ItemContent, index: int = 0) -> int:
        """Return how many questions it costs to have the hashes around a block fetched."""
        before = len(self.source.ranges)
        self.pages.request(content, index)
        self.pages.wait()
        self.pages.check()
        return len(self.source.ranges) - before


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "blocks")
    yield bench
    bench.source.may_answer.set()
    bench.pages.close()
    bench.cache.close()


def test_page_of_a_block_is_fetched_and_no_other(bench: Bench) -> None:
    came: list[range] = []
    bench.pages.on_come = lambda content, indices: came.append(indices)

    bench.pages.request(ITEM, PAGE + 1)
    bench.pages.wait()
    last = [bench.pages.obtain(ITEM, index) for index in range(PAGE, NUMBER)]
    before = bench.pages.find(ITEM, [PAGE - 1])
    bench.fetched(ITEM, PAGE - 1)

    assert last == EACH[PAGE:]
    assert before == [None]
    assert bench.source.ranges == [(PAGE, 3), (0, PAGE)]
    assert came == [range(PAGE, NUMBER), range(PAGE)]
    indices = [0, PAGE - 1, PAGE, NUMBER - 1]
    assert bench.pages.find(ITEM, indices) == [EACH[index] for index in indices]


def test_page_that_is_here_or_kept_is_not_asked_for(bench: Bench) -> None:
    assert bench.fetched(ITEM) == 1
    assert bench.fetched(ITEM, PAGE - 1) == 0
    bench.fetched(item("of another"))
    assert bench.pages.has_some(ITEM), "there is room for several"

    bench.pages = bench.anew()

    assert bench.fetched(ITEM) == 0
    assert bench.pages.has_some(ITEM), "the cache is asked once"
    assert bench.pages.obtain(ITEM, 5) == EACH[5]
    assert bench.pages.find(item("of a third"), [5]) == [None]


def test_item_of_one_block_has_no_hashes_and_one_of_two_has(bench: Bench) -> None:
    assert bench.fetched(ONE_BLOCK) == 0
    bench.pages.learn(ONE_BLOCK, HASHES[:HASH_BYTES])
    assert bench.pages.find(ONE_BLOCK, [0]) == [None]
    assert bench.pages.obtain(ONE_BLOCK, 0) is None
    assert not bench.pages.are_there(ONE_BLOCK)
    assert not bench.pages.has_some(ONE_BLOCK)

    for there in (False, True):
        bench.source.are_there = there
        assert bench.pages.are_there(TWO_BLOCKS) is there
        bench.now_s += ABSENT_S
    assert bench.pages.find(TWO_BLOCKS, [0, 1]) == EACH[:2]
    assert bench.pages.obtain(TWO_BLOCKS, 1) == EACH[1]
    assert bench.pages.has_some(TWO_BLOCKS)
    bench.pages.learn(TWO_BLOCKS_OF_ANOTHER, HASHES[: 2 * HASH_BYTES])
    assert bench.pages.find(TWO_BLOCKS_OF_ANOTHER, [0, 1]) == EACH[:2]
    bench.pages.forget_item(TWO_BLOCKS_OF_ANOTHER)
    assert not bench.pages.has_some(TWO_BLOCKS_OF_ANOTHER)


def give_none(source: Source) -> None:
    source.are_there = False


def give_too_few(source: Source) -> None:
    source.hashes = HASHES[: 5 * HASH_BYTES]


def fail_with(error: DserverfsError) -> Callable[[Source], None]:
    return lambda source: setattr(source, "failure", error)


def fail_by_a_fault(source: Source) -> None:
    source.fault = True


no_hashes = pytest.mark.expects_log("read without block hashes")
ours = pytest.mark.expects_log("a fault of ours")


@pytest.mark.parametrize(
    "go_wrong",
    [
        give_none,
        pytest.param(give_too_few, marks=no_hashes),
        pytest.param(fail_with(IntegrityError("another manifest's")), marks=no_hashes),
    ],
    ids=["none", "too few", "another manifest's"],
)
def test_dataset_without_hashes_is_asked_for_them_once_a_while(
    bench: Bench, go_wrong: Callable[[Source], None]
) -> None:
    go_wrong(bench.source)
    assert bench.fetched(ITEM) == 1
    assert bench.pages.obtain(ITEM, 0) is None

    assert bench.fetched(item("another of it")) == 0
    assert bench.fetched(item("of another", dataset=OTHER_DATASET)) == 1
    bench.now_s += ABSENT_S - 1
    assert bench.fetched(ITEM) == 0
    bench.now_s += 1
    assert bench.fetched(ITEM) == 1


def test_item_without_hashes_says_nothing_of_the_others_of_its_dataset(bench: Bench) -> None:
    bench.source.hashes = b""
    assert bench.fetched(ITEM) == 1
    bench.source.hashes = HASHES

    assert bench.fetched(item("another of it")) == 1
    assert bench.pages.obtain(item("another of it"), 0) == EACH[0]
    assert bench.fetched(ITEM) == 0
    bench.now_s += ABSENT_S
    assert bench.fetched(ITEM) == 1


@pytest.mark.parametrize(
    "go_wrong",
    [fail_with(Unreachable("away")), pytest.param(fail_by_a_fault, marks=ours)],
    ids=["no answer", "a fault of ours"],
)
def test_page_that_could_not_be_had_is_asked_for_again_in_a_while(
    bench: Bench, go_wrong: Callable[[Source], None]
) -> None:
    go_wrong(bench.source)
    assert bench.fetched(ITEM) == 1

    assert bench.fetched(item("another of it")) == 1, "that one may be had"
    bench.source.failure, bench.source.fault = None, False
    bench.now_s += RETRY_S - 1
    assert bench.fetched(ITEM) == 0
    bench.now_s += 1
    assert bench.fetched(ITEM) == 1
    assert bench.pages.obtain(ITEM, 0) == EACH[0]


def test_cache_is_asked_again_in_a_while(bench: Bench) -> None:
    """Another process may have kept the page there."""
    assert bench.pages.find(ITEM, [0]) == [None]
    other = bench.anew()
    other.request(ITEM, 0)
    other.wait()

    at_once = bench.pages.find(ITEM, [0])
    bench.now_s += RETRY_S

    assert at_once == [None]
    assert bench.pages.find(ITEM, [0]) == EACH[:1]


def test_what_is_noted_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_pages, "MAX_NOTED", 3)
    bench.source.failure = Unreachable("away")

    assert sum(bench.fetched(item(f"{number}")) for number in range(5)) == 5

    assert bench.fetched(item("4")) == 0, "the last is noted still"
    assert bench.fetched(item("0")) == 1, "the first is not"


def test_hashes_that_may_be_wrong_count_until_others_come(bench: Bench) -> None:
    bench.fetched(ITEM)
    bench.source.hashes = bytes(len(HASHES))
    bench.source.may_answer.clear()

    bench.pages.renew(ITEM, 7)
    meanwhile = bench.pages.obtain(ITEM, 7)
    bench.source.may_answer.set()
    bench.pages.wait()

    assert meanwhile == EACH[7]
    assert bench.pages.obtain(ITEM, 7) == bytes(HASH_BYTES)
    assert bench.source.forgotten == [DATASET], "what the source knows of it may be wrong, too"
    assert bench.anew().find(ITEM, [7]) == [bytes(HASH_BYTES)], "they are kept in place of those"


def test_hashes_are_renewed_once_a_while(bench: Bench) -> None:
    def renewed(index: int) -> int:
        before = len(bench.source.ranges)
        bench.pages.renew(ITEM, index)
        bench.pages.wait()
        return len(bench.source.ranges) - before

    bench.fetched(ITEM)
    assert [renewed(1), renewed(2), renewed(PAGE)] == [1, 0, 1]
    bench.now_s += RETRY_S - 1
    assert renewed(1) == 0
    bench.now_s += 1
    assert renewed(1) == 1


def test_hashes_of_an_item_that_was_compared_serve_all_with_its_content(bench: Bench) -> None:
    bench.pages.learn(ITEM, bytearray(HASHES))
    assert bench.pages.has_some(ITEM)

    indices = [0, PAGE - 1, PAGE, NUMBER - 1]
    for pages, content in [
        (bench.pages, ITEM),
        (bench.anew(), ITEM),
        (bench.anew(), item("of another", dataset=OTHER_DATASET)),
    ]:
        assert pages.find(content, indices) == [EACH[index] for index in indices]
    assert bench.anew().find(item("of another", hash="1" * 32), indices) == [None] * 4
    assert not bench.source.ranges
    bench.pages.check()
    bench.cache.close()
    assert bench.pages.find(ITEM, [0]) == EACH[:1], "they are in memory, too"


def test_item_that_turned_out_wrong_has_no_hashes_any_more(bench: Bench) -> None:
    bench.fetched(ITEM)
    bench.fetched(ITEM, PAGE)
    bench.pages.learn(ITEM, HASHES)

    bench.pages.forget_item(ITEM)

    bench.pages.check()
    assert not bench.pages.has_some(ITEM)
    assert bench.anew().find(ITEM, [0, PAGE]) == [None, None]


def test_page_that_is_damaged_in_the_cache_counts_as_none(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.fetched(ITEM)
    for path in bench.cache.directory.glob("?/*"):
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)

    assert bench.anew().find(ITEM, [0]) == [None]


def test_page_that_is_damaged_for_all_may_be_right_for_one_item(bench: Bench) -> None:
    bench.pages.learn(ITEM, HASHES)
    for path in bench.cache.directory.glob("?/*"):
        content = bytearray(path.read_bytes())
        content[5] ^= 1
        path.write_bytes(content)
    bench.pages.renew(ITEM, 0)
    bench.pages.wait()

    assert bench.anew().find(ITEM, [0]) == EACH[:1]


def test_item_that_is_read_keeps_its_pages_and_the_oldest_gives_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "MAX_MEMORY_BYTES", 1)
    bench.fetched(ITEM)
    assert bench.pages.has_some(ITEM), "one item has what it needs"

    monkeypatch.setattr(hash_pages, "MAX_MEMORY_BYTES", len(HASHES) + 2000)
    bench.fetched(TWO_BLOCKS_OF_ANOTHER)
    assert bench.pages.has_some(ITEM)
    monkeypatch.setattr(hash_pages, "MAX_MEMORY_BYTES", len(HASHES) + 1500)
    bench.fetched(ITEM, PAGE)

    assert [bench.pages.has_some(each) for each in (ITEM, TWO_BLOCKS_OF_ANOTHER)] == [True, False]
    assert bench.pages.find(ITEM, [0, PAGE]) == [EACH[0], EACH[PAGE]]
    assert bench.pages.find(TWO_BLOCKS_OF_ANOTHER, [1]) == EACH[1:2], "the cache has it"


def test_wait_is_over_when_what_came_is_kept(bench: Bench) -> None:
    done: list[str] = []
    may_be_kept = threading.Event()

    def come(content: ItemContent, indices: range) -> None:
        assert may_be_kept.wait(LATE_S)
        done.append("kept")

    def wait() -> None:
        bench.pages.wait()
        done.append("waited")

    bench.pages.on_come = come
    bench.pages.request(ITEM, 0)
    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.05)  # time to be wrong in
    may_be_kept.set()
    waiting.join(LATE_S)

    assert done == ["kept", "waited"]


def test_dataset_whose_hashes_are_slow_is_not_waited_for_again_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.source.may_answer.clear()
    items = [item(f"item {number}") for number in range(3)]
    for each in items:
        bench.pages.request(each, 0)
    monkeypatch.setattr(hash_pages, "WAIT_S", 0.01)
    first = bench.pages.obtain(items[0], 0)
    monkeypatch.setattr(hash_pages, "WAIT_S", 1000.0)
    second = bench.pages.obtain(items[1], 0)

    assert (first, second) == (None, None)
    bench.now_s += RETRY_S
    threading.Timer(0.05, bench.source.may_answer.set).start()
    assert bench.pages.obtain(items[2], 0) == EACH[0]


def test_who_waits_for_hashes_has_them_when_they_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "WAIT_S", 1000.0)
    bench.source.may_answer.clear()
    bench.pages.request(ITEM, 0)
    got: list[bytes | None] = []
    reader = threading.Thread(target=lambda: got.append(bench.pages.obtain(ITEM, 0)), daemon=True)
    reader.start()

    bench.source.may_answer.set()
    reader.join(LATE_S)

    assert got == EACH[:1]


def test_end_lets_go_of_those_who_wait_for_hashes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "WAIT_S", 1000.0)
    bench.source.may_answer.clear()
    bench.pages.request(ITEM, 0)
    got: list[bytes | None] = []
    reader = threading.Thread(target=lambda: got.append(bench.pages.obtain(ITEM, 0)))
    reader.start()

    bench.pages.close()
    reader.join(LATE_S)
    bench.pages.request(TWO_BLOCKS_OF_ANOTHER, 0)

    assert got == [None]
    assert bench.pages.obtain(TWO_BLOCKS_OF_ANOTHER, 0) is None, "nobody fetches it any more"


def test_what_waits_to_be_asked_for_is_not_after_the_end(bench: Bench) -> None:
    bench.source.may_answer.clear()
    for number in range(hash_pages.THREADS + 3):
        bench.pages.request(item(f"{number}"), 0)

    bench.pages.close()
    bench.source.may_answer.set()
    bench.pages._pool.shutdown(wait=True)

    assert len(bench.source.ranges) <= hash_pages.THREADS


def test_whether_a_dataset_has_hashes_is_the_source_s_to_say(bench: Bench) -> None:
    assert bench.pages.has_source(DATASET)
    bench.source.are_there = False
    assert not bench.pages.has_source(DATASET)
    assert not HashPages(bench.cache, NoHashes()).has_source(DATASET)
