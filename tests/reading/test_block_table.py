"""The rows of the cache: what is entered, found, moved, evicted and told apart; no file is read."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from dserverfs.reading.cache.block_files import MAX_BLOCKS_IN_FILE, files_in
from dserverfs.reading.cache.block_table import PINNED_S, BlockTable, OldRow
from dserverfs.reading.cache.opening import open_table
from tests.support.block_rows import LARGE, NO_LIMIT, SMALL, has, sql, store, used

pytest_plugins = ["tests.support.cache_fixtures"]

both = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


# Entering and finding


@both
def test_row_is_found_as_it_was_entered(table: BlockTable, data: bytes) -> None:
    blocks = store(table, "a", "b", data=data)

    found = table.find(["a", "none", "b"])

    assert found.keys() == blocks.keys() == table.present(["a", "none", "b"])
    for key, block in blocks.items():
        row = found[key]
        assert (row.checksums, row.serial) == (block.checksums, block.serial)
        assert (row.filename is None) is (data == SMALL)
        assert row.value == (SMALL if data == SMALL else None)
    assert len(table) == 2


@both
@pytest.mark.parametrize(
    "change",
    [
        *("key = 'b'", "mode = mode + 1", "filename = '0'", "access_count = access_count + 1"),
        *("tag = NULL", "tag = 'text'", "tag = x'00'", "tag = substr(tag, 1, length(tag) - 1)"),
        *("tag = CAST(tag || x'00' AS BLOB)", "tag = CAST(x'00000000' || substr(tag, 5) AS BLOB)"),
    ],
)
def test_row_that_was_changed_has_no_checksums(table: BlockTable, data: bytes, change: str) -> None:
    store(table, "a", data=data)
    sql(table, f"UPDATE Cache SET {change}")

    assert [row.checksums for row in table.find(["a", "b"]).values()] == [None]
    assert [row.checksums for row in table.rows()] == [None]


def test_key_that_is_no_text_is_a_damaged_row(table: BlockTable) -> None:
    store(table, "a", data=SMALL)
    sql(table, "UPDATE Cache SET key = x'61'")

    ((key, checksums),) = [(row.key, row.checksums) for row in table.rows()]
    assert (key, checksums) == (b"a", None)


def test_small_block_that_is_there_stays_and_a_large_one_is_replaced(
    table: BlockTable, tmp_path: Path
) -> None:
    first = store(table, "s", data=SMALL)["s"]
    store(table, "s", data=SMALL)
    assert table.find(["s"])["s"].serial == first.serial

    store(table, "a", "b")
    before = {path.name for path in tmp_path.glob("?/*")}
    second = store(table, "a")["a"]

    assert table.find(["a"])["a"].serial == second.serial
    assert table.count("", "z") == 3
    left = before & {path.name for path in tmp_path.glob("?/*")}
    assert len(left) == 1, "the name of the one that was replaced is gone"


@both
def test_blocks_beyond_the_limit_have_the_oldest_give_way(tmp_path: Path, data: bytes) -> None:
    table = open_table(tmp_path, NO_LIMIT, 0.05)
    for number in range(40):
        store(table, f"{number:02}", data=data)
        sql(table, "UPDATE Cache SET access_time = ? WHERE key = ?", number, f"{number:02}")
    table._cache.reset("size_limit", 1)

    store(table, "new", data=data)

    culled = 16 + (data == SMALL)  # of small ones as many more as were entered
    assert {key for key in used(table) if key != "new"} == {f"{n:02}" for n in range(culled, 40)}
    assert len(files_in(tmp_path)) == (0 if data == SMALL else 41 - culled)
    table.close()


def test_as_many_give_way_as_are_entered_until_there_is_room(tmp_path: Path) -> None:
    table = open_table(tmp_path, NO_LIMIT, 0.05)
    for number in range(60):
        store(table, f"{number:02}")
    table._cache.reset("size_limit", table.held_in_bytes() - 20 * len(LARGE))

    store(table, "x", "y", "z")

    assert len(used(table)) == 63 - 2 * 16, "two times, and then there is room"
    assert table.excess_in_bytes() < 0
    table.close()


def test_row_of_a_block_that_gave_way_at_once_is_none(tmp_path: Path) -> None:
    table = open_table(tmp_path, 1, 0.05)

    store(table, "a")

    assert used(table) == {}
    assert files_in(tmp_path) == set()
    table.close()


# Keys that lie between


@both
def test_keys_between_two_are_counted_and_deleted(
    table: BlockTable, tmp_path: Path, data: bytes
) -> None:
    store(table, "a:1", "a:2", "b:1", data=data)

    assert [table.count("a:", "a;"), table.count("b:", "b;"), table.count("c", "d")] == [2, 1, 0]
    table.delete_between("a:", "a;")
    assert used(table).keys() == {"b:1"}
    table.delete(["b:1", "none"])

    assert used(table) == {}
    assert files_in(tmp_path) == set()


def test_deleted_rows_leave_their_files(table: BlockTable, tmp_path: Path) -> None:
    store(table, "a", "b")
    number = table.find(["a"])["a"].number

    table.delete_rows([number, 99])

    assert used(table).keys() == {"b"}
    assert len(files_in(tmp_path)) == 2


@both
@pytest.mark.parametrize("is_replaced", [True, False])
def test_row_is_deleted_unless_it_was_replaced_since(
    table: BlockTable, tmp_path: Path, data: bytes, is_replaced: bool
) -> None:
    store(table, "a", data=data)
    (row,) = table.rows()
    if is_replaced:
        table.delete(["a"])
        store(table, "other" if data == SMALL else "a", data=data)

    table.delete_unless_replaced(row)

    assert len(used(table)) == is_replaced
    assert len(files_in(tmp_path)) == (is_replaced and data == LARGE)


# Moving


@both
def test_block_is_moved_with_its_seal_and_without_its_bytes(
    table: BlockTable, tmp_path: Path, data: bytes
) -> None:
    blocks = store(table, "a", "b", data=data)
    files = files_in(tmp_path)

    table.move([("a", "=a", blocks["a"].serial), ("b", "=b", 0), ("c", "=c", 1)])

    assert table.find(["=a"])["=a"].checksums == blocks["a"].checksums
    assert used(table).keys() == {"=a", "b"}
    assert files_in(tmp_path) == files


@both
@pytest.mark.parametrize("there", ["sound", "damaged", "lost"])
def test_block_takes_the_place_of_one_that_cannot_be_had(
    table: BlockTable, tmp_path: Path, data: bytes, there: str
) -> None:
    first = store(table, "=a", data=data)["=a"]
    if there == "damaged":
        sql(table, "UPDATE Cache SET tag = x'00'")
    elif there == "lost" and data == LARGE:
        for name in files_in(tmp_path):
            (tmp_path / name).unlink()
    second = store(table, "a", data=data)["a"]

    table.move([("a", "=a", second.serial)])

    stays = there == "sound" or (there == "lost" and data == SMALL)
    assert table.find(["=a"])["=a"].serial == (first if stays else second).serial
    assert used(table).keys() == {"=a"}
    assert len(files_in(tmp_path)) == (data == LARGE)


def test_damaged_block_is_not_moved_and_goes(table: BlockTable) -> None:
    block = store(table, "a", data=SMALL)["a"]
    sql(table, "UPDATE Cache SET tag = x'00'")

    table.move([("a", "=a", block.serial)])

    assert used(table) == {}


@both
def test_block_that_is_there_already_was_used_when_the_other_was(
    table: BlockTable, data: bytes
) -> None:
    store(table, "=a", data=data)
    block = store(table, "a", data=data, pinned=frozenset({"a"}))["a"]

    table.move([("a", "=a", block.serial)])

    assert used(table) == {"=a": PINNED_S}


# The order of use


@both
def test_pinned_blocks_are_entered_as_used_last_and_others_now(
    table: BlockTable, data: bytes
) -> None:
    before_s = time.time()
    store(table, "a", "b", data=data, pinned=frozenset({"a", "c"}))

    moments = used(table)
    assert moments["a"] == PINNED_S
    assert before_s <= moments["b"] <= time.time()
    number = table.find(["a"])["a"].number
    assert table.pinned_rows() == {number}


@pytest.mark.parametrize("count", [2, MAX_BLOCKS_IN_FILE])
def test_use_and_pin_are_those_of_all_blocks_of_a_file_and_no_others(
    table: BlockTable, count: int
) -> None:
    together = [f"t{number:02}" for number in range(count)]
    store(table, *(f"b{number}" for number in range(3)))
    store(table, *together)
    store(table, *(f"c{number}" for number in range(3)))
    store(table, "small", data=SMALL)
    rows = {key: row.number for key, row in table.find([*used(table)]).items()}
    of_file = {rows[key] for key in together}

    for key in (together[0], together[-1]):
        before = used(table)
        moment_s = max(before.values()) + 10
        table.note_uses([(rows[key], moment_s), (rows[key], 1.0)])
        after = used(table)
        assert {k for k in after if after[k] == moment_s} == {*together}
        assert {k for k in after if after[k] != before[k]} == {*together}
        assert table.of_same_file(rows[key]).keys() == of_file
        assert table.rows_of([key, "none"]) == of_file
    assert table.rows_of([together[0], together[1], "small"]) == of_file | {rows["small"]}

    table.pin([together[1], "small"])
    assert table.pinned_rows() == of_file | {rows["small"]}
    before_s = time.time()
    table.release([rows["small"], rows[together[0]]])
    assert table.pinned_rows() == of_file - {rows[together[0]]}
    assert before_s <= used(table)["small"] <= time.time()


def test_those_used_longest_ago_come_first_and_pinned_ones_never(table: BlockTable) -> None:
    for key, moment_s in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        store(table, key)
        sql(table, "UPDATE Cache SET access_time = ? WHERE key = ?", moment_s, key)
    store(table, "s", data=SMALL)
    store(table, "p", pinned=frozenset({"p"}))
    sql(table, "UPDATE Cache SET filename = '../c' WHERE key = 'c'")
    rows = table.find(["a", "b", "c", "s"])

    expected = [OldRow(rows[key].number, rows[key].filename, 0) for key in "bca"]
    expected[1] = expected[1]._replace(filename=None)
    assert table.least_recently_used(3) == expected
    assert table.least_recently_used(9)[3:] == [OldRow(rows["s"].number, None, len(SMALL))]
    assert table.of_same_file(rows["b"].number) == {rows["b"].number: rows["b"].filename}
    assert table.of_same_file(rows["c"].number) == {rows["c"].number: None}


# What no cache wrote


@pytest.mark.parametrize("value", ["'text'", "x'00'", "NULL"])
def test_size_that_is_no_number_is_a_corrupt_database(table: BlockTable, value: str) -> None:
    sql(table, f"UPDATE Settings SET value = {value} WHERE key = 'size'")

    with pytest.raises(sqlite3.DatabaseError, match="none of a cache"):
        table.held_in_bytes()


def test_key_that_is_no_text_of_sqlite_is_a_fault_of_the_caller(table: BlockTable) -> None:
    with pytest.raises(UnicodeEncodeError):
        table.delete(["\udcff"])


def test_closed_table_is_opened_by_the_next_question(table: BlockTable) -> None:
    store(table, "a", data=SMALL)
    before = table._cache._con

    table.close()

    assert has(table, "a")
    assert table._cache._con is not before
