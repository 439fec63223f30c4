"""Which opens and reads of a mount belong to a trace, and how the bytes are noted."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.errors import UsageError
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Identifier
from dserverfs.mount import traces
from dserverfs.mount.traces import Traces
from dserverfs.reading.traced_items import MAX_RANGES, TracedItem
from tests.support.child_processes import spawn
from tests.support.reading_world import DATASET


def item(name: str = "item") -> ItemContent:
    return ItemContent(name, DATASET, Identifier(name), 10, "md5", "0", lambda limit: [])


def bytes_in(noted: TracedItem) -> set[int]:
    return {byte for start, end in noted.ranges for byte in range(start, end)}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_ranges_have_exactly_the_bytes_that_were_read_and_lie_apart(
    reads: list[tuple[int, int]],
) -> None:
    noted = TracedItem(item())
    for start, length in reads:
        noted.add(start, start + length)

    assert bytes_in(noted) == {b for start, length in reads for b in range(start, start + length)}
    ends = [moment for each in noted.ranges for moment in each]
    assert ends == sorted(set(ends)), "ascending, and none touches the next"


def test_ranges_are_bounded_and_have_all_that_was_read() -> None:
    noted, chance = TracedItem(item()), random.Random(3)
    places = [chance.randrange(10_000) * 2 for _ in range(3 * MAX_RANGES)]
    for place in places:
        noted.add(place, place + 1)

    assert len(noted.ranges) == MAX_RANGES
    assert {*places} <= bytes_in(noted)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with spawn(["sleep", "60"]) as process:
        yield process


def test_processes_below_the_one_that_asked_are_traced_and_others_not(
    child: subprocess.Popen[bytes],
) -> None:
    both = Traces()
    mine, of_child = both.begin(os.getpid()), both.begin(child.pid)

    both.read(both.opened(item("by child"), child.pid), 0, 5)
    both.read(both.opened(item("by me"), os.getpid()), 0, 5)
    both.opened(item("by another"), 1)

    assert [*both.end(mine).items] == ["by child", "by me"]
    assert [*both.end(of_child).items] == ["by child"]
    assert not both.active
    with pytest.raises(UsageError, match="no trace"):
        both.end(mine)


def test_trace_of_a_process_that_has_ended_makes_room_for_others(
    child: subprocess.Popen[bytes],
) -> None:
    many = Traces()
    lost = many.begin(child.pid)
    for _ in range(traces.MAX_TRACES - 1):
        many.begin(os.getpid())
    with pytest.raises(UsageError, match="traced by 16 commands"):
        many.begin(os.getpid())

    child.kill()
    child.wait()
    many.begin(os.getpid())

    assert lost not in many.active


def test_items_of_a_trace_are_bounded_and_those_left_out_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "MAX_ITEMS", 2)
    some = Traces()
    number = some.begin(os.getpid())

    for name in ("one", "two", "three", "one"):
        some.read(some.opened(item(name), os.getpid()), 0, 1)

    trace = some.end(number)
    assert [*trace.items] == ["one", "two"]
    assert trace.left_out == 1


def test_processes_that_cannot_be_seen_are_not_traced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not see"):
        Traces().begin(0)
