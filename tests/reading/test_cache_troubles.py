"""A cache that fails, is closed or taken away misses, raises nothing, and comes back."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dserverfs.base.directories import CannotBeMade
from dserverfs.base.sealed_files import write_sealed
from dserverfs.reading.cache import block_cache, layout, watch
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_files import files_in
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.block_table import BlockTable
from dserverfs.reading.cache.opening import open_table
from dserverfs.reading.cache.pins import PinnedItem
from tests.support.failing_caches import (
    AT_ONCE,
    BLOCK,
    BROKEN,
    BUSY,
    CORRUPT,
    FOR_LONG,
    KEYS,
    LARGE,
    Failing,
    has,
)
from tests.support.patience import LATE_S

pytest_plugins = ["tests.support.cache_fixtures"]


class Question(NamedTuple):
    """What a cache is asked, the method of its table that answers, and what an empty one says."""

    method: str
    ask: Callable[[BlockCache], Any]
    otherwise: Any


READS = {
    "load": Question("find", lambda cache: cache.load(KEYS[0], len(LARGE)), None),
    "many": Question(
        "find", lambda cache: cache.load_many([(k, len(LARGE)) for k in KEYS[:2]]), [None, None]
    ),
    "present": Question("present", lambda cache: cache.present(KEYS[:2]), [False, False]),
    "count": Question("count", lambda cache: cache.count("item"), 0),
    "usage": Question("held_in_bytes", lambda cache: cache.usage(), None),
    "drop": Question("delete", lambda cache: cache.drop(KEYS[:1]), None),
    "drop item": Question("delete_between", lambda cache: cache.drop_item("item"), None),
}
WRITES = {
    "store": Question("store", lambda cache: cache.store([(KEYS[1], BLOCK)]), {}),
    "enter": Question(
        "move", lambda cache: cache.enter_verified("item", "=content", [BLOCK.serial]), None
    ),
    "move": Question("move", lambda cache: cache.move(KEYS[0], KEYS[1], BLOCK.serial), None),
    "evict": Question("least_recently_used", lambda cache: cache.evict(1), False),
}
QUESTIONS = {**READS, **WRITES}


# A disk that fails


@pytest.mark.expects_log("fails, reading without a cache until it works again")
@pytest.mark.parametrize("error", [BUSY, BROKEN], ids=["busy", "broken"])
@pytest.mark.parametrize("name", READS)
def test_cache_that_cannot_be_asked_is_as_an_empty_one_until_it_can(
    open_cache: Callable[..., BlockCache], name: str, error: Exception
) -> None:
    question = READS[name]
    for tuning, is_back in ((AT_ONCE, True), (FOR_LONG, False)):
        cache = open_cache(tuning)
        cache.store([(KEYS[0], BLOCK)])

        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, question.method, error)
            assert question.ask(cache) == question.otherwise
            assert question.ask(cache) == question.otherwise

        assert failing.asked == (2 if is_back else 1), "not asked in vain while it is broken"
        assert has(cache, KEYS[0]) == [is_back]


@pytest.mark.expects_log("cannot be written, keeping nothing new until it can")
@pytest.mark.parametrize("error", [BUSY, BROKEN], ids=["busy", "broken"])
@pytest.mark.parametrize("name", WRITES)
def test_cache_that_cannot_be_written_is_read_and_written_when_it_can(
    open_cache: Callable[..., BlockCache], cache_directory: Path, name: str, error: Exception
) -> None:
    question = WRITES[name]
    for tuning, is_back in ((AT_ONCE, True), (FOR_LONG, False)):
        cache = open_cache(tuning)
        cache.store([(KEYS[0], BLOCK)])
        before = files_in(cache_directory)

        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, question.method, error)
            assert question.ask(cache) == question.otherwise

        assert files_in(cache_directory) == before, "what was not entered is taken back"
        assert has(cache, KEYS[0]) == [True]
        assert bool(cache.store([(KEYS[2], BLOCK)])) is is_back
        cache.drop(KEYS)


@pytest.mark.expects_log("cannot be written")
def test_trouble_that_comes_again_is_told_again(
    open_cache: Callable[..., BlockCache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache()
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, "store", BUSY)
            cache.store([(KEYS[0], BLOCK)])
            cache.store([(KEYS[0], BLOCK)])
        cache.store([(KEYS[0], BLOCK)])

    told = [record.levelname for record in caplog.records if "cannot be" in record.getMessage()]
    assert told.count("WARNING") == 2


@pytest.mark.expects_log("corrupt and is made anew", "fails, reading without a cache")
@pytest.mark.parametrize("name", QUESTIONS)
def test_cache_that_turns_out_corrupt_is_made_anew_at_once(
    open_cache: Callable[..., BlockCache], cache_directory: Path, name: str
) -> None:
    question = QUESTIONS[name]
    cache = open_cache()
    cache.store([(KEYS[0], BLOCK)])

    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, question.method, CORRUPT)
        assert question.ask(cache) == question.otherwise

    assert has(cache, KEYS[0]) == [False]
    assert files_in(cache_directory) == set()
    cache.store([(KEYS[0], BLOCK)])
    assert has(cache, KEYS[0]) == [True]
    assert cache.table is cache.table, "once"


@pytest.mark.expects_log("fails, reading without a cache")
def test_corrupt_cache_that_another_has_made_anew_is_taken_as_it_is(
    open_cache: Callable[..., BlockCache], cache_directory: Path
) -> None:
    cache = open_cache()
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, "find", CORRUPT)
        assert has(cache, KEYS[0]) == [False]
    for path in cache_directory.glob("cache.db*"):
        path.rename(cache_directory.parent / path.name)
    open_cache().store([(KEYS[0], BLOCK)])

    assert has(cache, KEYS[0]) == [True]


@pytest.mark.expects_log("fails, reading without a cache")
def test_block_whose_file_cannot_be_opened_is_a_miss(
    open_cache: Callable[..., BlockCache], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache()
    cache.store([(KEYS[0], BLOCK)])

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", raising(BROKEN))
        missed = has(cache, KEYS[0])

    assert (missed, has(cache, KEYS[0])) == ([False], [True])


def test_order_of_use_that_cannot_be_written_is_done_without(
    open_cache: Callable[..., BlockCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache()
    cache.store([(KEYS[0], BLOCK)])
    assert has(cache, KEYS[0]) == [True]
    Failing(monkeypatch, "note_uses", BUSY)

    assert cache.evict(1)


@pytest.mark.expects_log("fails, reading without a cache")
@pytest.mark.parametrize(
    ("name", "error"), [("open_table", BUSY), ("private_directory", CannotBeMade("no room"))]
)
def test_cache_that_cannot_be_opened_is_opened_later(
    open_cache: Callable[..., BlockCache], name: str, error: Exception
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_cache, name, raising(error))
        cache = open_cache()
        assert has(cache, KEYS[0]) == [False]
    cache.store([(KEYS[0], BLOCK)])

    assert has(cache, KEYS[0]) == [True]


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: object) -> Any:
        raise error

    return fail


# A cache that is closed, or gone


@pytest.mark.parametrize("was_open", [True, False])
def test_closed_cache_is_as_an_empty_one_and_keeps_nothing_open(
    cache_directory: Path, was_open: bool
) -> None:
    before = {*threading.enumerate()}
    cache = BlockCache(cache_directory)
    if was_open:
        cache.open()
        cache.pins.add("uri", "name", [PinnedItem("uri", "a", "item", "=content", 1)])
        cache.store([(KEYS[0], BLOCK)])
        (block,) = cache.load_many([(KEYS[0], len(LARGE))])
        assert block is not None
        cache.close()
        cache.note_use(block)
        del block
        cache.close()

    for question in QUESTIONS.values():
        assert question.ask(cache) == question.otherwise
    assert cache.table is None
    assert cache_directory.exists() is was_open
    for thread in {*threading.enumerate()} - before:
        thread.join(LATE_S)
        assert not thread.is_alive(), thread.name
    held = {os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    assert not [path for path in held if path.startswith(str(cache_directory))]


@pytest.mark.parametrize("when", ["before", "while"])
def test_cache_that_was_taken_away_is_made_anew_by_what_is_kept_next(
    open_cache: Callable[..., BlockCache], cache_directory: Path, when: str
) -> None:
    def take_away() -> None:
        """At once, for a sweep may be writing in it."""
        cache_directory.rename(cache_directory.with_name("taken-away"))

    def taken_away(*arguments: object) -> None:
        take_away()
        raise FileNotFoundError(errno.ENOENT, "gone")

    told: list[object] = []
    cache = open_cache(FOR_LONG, on_removal=told.append)
    cache.store([(KEYS[0], BLOCK)])
    assert not told

    if when == "before":
        take_away()
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BlockTable, "store", taken_away)
            assert cache.store([(KEYS[1], BLOCK)]) == {}
        assert told, "before anybody reads"
        assert has(cache, KEYS[0]) == [False]
    assert cache.store([(KEYS[1], BLOCK)])

    assert told, "what is open of it is closed"
    assert has(open_cache(), KEYS[0], KEYS[1]) == [False, True], "others see it as well"
    assert has(cache, KEYS[0], KEYS[1]) == [False, True]
    assert cache.table is cache.table, "once"


@pytest.mark.expects_log("fails, reading without a cache")
@pytest.mark.parametrize("trouble", ["busy", "newer"])
def test_cache_that_cannot_be_made_anew_is_not_used_as_it_was(
    open_cache: Callable[..., BlockCache], cache_directory: Path, trouble: str
) -> None:
    cache = open_cache()
    cache.store([(KEYS[0], BLOCK)])
    old = cache.table
    cache_directory.rename(cache_directory.with_name("taken-away"))

    with pytest.MonkeyPatch.context() as patch:
        if trouble == "busy":
            patch.setattr(block_cache, "open_table", raising(BUSY))
        else:
            cache_directory.mkdir(mode=0o700)
            write_sealed(cache_directory / layout.FORMAT, b"2")
        for _ in range(2):
            assert cache.store([(KEYS[1], BLOCK)]) == {}
            assert has(cache, KEYS[0], KEYS[1]) == [False, False]
    assert not [*cache_directory.glob("cache.db*")]
    (cache_directory / layout.FORMAT).unlink(missing_ok=True)
    cache.store([(KEYS[1], BLOCK)])

    assert has(open_cache(), KEYS[1]) == [True]
    assert cache.table is not old


def test_cache_that_is_closed_while_it_is_opened_anew_is_closed(
    open_cache: Callable[..., BlockCache], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache()
    cache_directory.rename(cache_directory.with_name("taken-away"))
    reached, may_go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> BlockTable:
        reached.set()
        assert may_go_on.wait(LATE_S)
        return open_table(*arguments)

    monkeypatch.setattr(block_cache, "open_table", slow)
    storing = threading.Thread(target=cache.store, args=([(KEYS[0], BLOCK)],))
    storing.start()
    assert reached.wait(LATE_S)
    closing = threading.Thread(target=cache.close)
    closing.start()
    closing.join(0.05)  # until it waits
    may_go_on.set()
    for thread in (closing, storing):
        thread.join(LATE_S)

    assert cache.table is None
    assert cache.store([(KEYS[0], BLOCK)]) == {}


# What was removed is closed


@pytest.mark.parametrize("does", ["stores", "loads"])
def test_process_that_has_files_open_is_told_when_another_evicts(
    open_cache: Callable[..., BlockCache], monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setattr(watch, "WATCH_S", 0.01)
    told = threading.Event()
    cache, other = open_cache(on_removal=lambda _: told.set()), open_cache()
    (cache if does == "stores" else other).store([(KEYS[0], BLOCK)])
    if does == "loads":
        assert has(cache, KEYS[0]) == [True]
    table = cache.table

    other.evict(1)

    assert told.wait(LATE_S)
    assert cache.table is table, "it is the same cache"


def test_what_was_removed_past_the_cache_is_told(open_cache: Callable[..., BlockCache]) -> None:
    told: list[object] = []
    cache = open_cache(on_removal=told.append)
    assert not told

    cache.tell_removed()

    assert len(told) == 1


def test_readers_are_told_when_blocks_give_way_and_only_then(
    open_cache: Callable[..., BlockCache],
) -> None:
    told: list[object] = []
    cache = open_cache(size_limit=40 * len(LARGE), on_removal=told.append)
    stored = 0
    while not told:
        cache.store([(BlockKey("item", stored), BLOCK)])
        stored += 1
        assert bool(told) is (cache.count("item") < stored)
        assert stored < 100
