"""Tables of many items, which are not in memory all at once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from dserverfs.base.disk_tables import DiskDict, FileTable, ItemTable
from dserverfs.base.model import Identifier, Item, identifier_of

COUNTS = [0, 1, 999, 1000, 1001, 2500]


def test_dict_gives_what_it_was_told_last() -> None:
    kept = DiskDict()

    kept["a"] = [1, 2**63, "ü"]
    kept["b"] = True
    kept["a"] = [1, 2**64, "ü"]

    assert kept["a"] == [1, 2**64, "ü"]
    assert "b" in kept
    assert "c" not in kept
    with pytest.raises(KeyError):
        kept["c"]


@pytest.mark.parametrize("count", COUNTS)
def test_files_come_in_their_order_and_by_size(count: int) -> None:
    table = FileTable(Path("/root"))
    for number in range(count):
        table.add(f"é/{number}", number % 700, number * 10**17)

    files = list(table.items())

    assert [relpath for relpath, _ in files] == list(table) == [f"é/{n}" for n in range(count)]
    assert all(table[relpath] == file for relpath, file in files[:3])
    assert all(int(relpath[2:]) * 10**17 == file.mtime_ns for relpath, file in files)
    assert table.size_in_bytes == sum(file.size_in_bytes for _, file in files)
    sizes = [table[str(path.relative_to("/root"))].size_in_bytes for path in table.largest_first()]
    assert sizes == sorted((file.size_in_bytes for _, file in files), reverse=True)
    assert len(table) == count


@pytest.mark.parametrize("count", COUNTS)
def test_items_are_found_by_identifier_with_their_dates(count: int) -> None:
    table = ItemTable()
    for number in range(count):
        table.add(f"é/{number}", number, "0" * 32, number * 10**17, number / 7)

    items = list(table.values())

    assert items == [
        Item(identifier_of(f"é/{n}"), f"é/{n}", n, "0" * 32, n * 10**17) for n in range(count)
    ]
    assert list(table) == [item.identifier for item in items]
    assert [date for _, date in table.dated()] == [number / 7 for number in range(count)]
    assert all(table[item.identifier] == item for item in items[:3])
    assert table.get(identifier_of("none")) is None
    assert table.get(Identifier("\ud800")) is None
    assert len(table) == count


def test_memory_does_not_grow_with_the_items() -> None:
    held = []
    tracemalloc.start()
    try:
        for count in (2_000, 8_000):
            tracemalloc.reset_peak()
            table = ItemTable()
            for number in range(count):
                table.add(f"{number}", number, "0" * 32, number, number / 7)
            assert sum(item.size_in_bytes for item in table.values()) > count
            held.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()

    assert held[1] - held[0] < 200_000


def test_larger_items_come_in_the_order_of_their_identifiers_however_many_there_are() -> None:
    items = ItemTable()
    for number in range(2500):
        items.add(f"item {number}", number % 7, "0" * 32, 0, 0.0)

    found = [item.identifier for item in items.larger_than(3)]

    assert found == sorted(item.identifier for item in items.values() if item.size_in_bytes > 3)
    assert len(found) > 1000
    assert list(items.larger_than(6)) == []
