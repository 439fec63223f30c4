"""A block cache that was damaged hands out right bytes or none, and is used again."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from dserverfs.base.damage import DAMAGES
from dserverfs.base.errors import UsageError
from dserverfs.base.sealed_files import write_sealed
from dserverfs.reading.cache import opening
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import MemoryBlock
from tests.support.cache_worker import BLOCKS
from tests.support.damaged_caches import (
    ITEMS,
    KINDS,
    files_by_kind,
    fill,
    hurt,
    left_by_a_kill,
    opened,
    require_right,
)

SEEDS = 1


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled cache as a killed process leaves it."""
    root = tmp_path_factory.mktemp("killed")
    return left_by_a_kill(root / "blocks", root / "scratch")


def test_every_kind_of_file_is_there_to_be_damaged(killed: Path) -> None:
    assert set(files_by_kind(killed)) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_any_kind_gives_right_bytes_or_none_and_a_cache_that_is_used_again(
    killed: Path, tmp_path: Path, kind: str
) -> None:
    for damage in DAMAGES:
        for seed in range(SEEDS):
            about = f"{kind} {damage} {seed}"
            directory = tmp_path / about
            shutil.copytree(killed, directory)
            hurt(directory, kind, damage, about)

            require_right(directory, about)


def test_undamaged_cache_has_all(killed: Path, tmp_path: Path) -> None:
    """Or the tests here would see nothing of it."""
    shutil.copytree(killed, tmp_path / "blocks")

    seen = require_right(tmp_path / "blocks", "undamaged")

    assert seen["damaged"] == 0
    assert seen["right"] >= BLOCKS * ITEMS


def changed(directory: Path, *statements: str) -> None:
    """Have SQL done in a cache that is closed."""
    database = sqlite3.connect(directory / "cache.db", isolation_level=None)
    before = [*database.iterdump()]
    for statement in statements:
        database.execute(statement)
    after = [*database.iterdump()]
    database.close()
    assert after != before, "nothing is damaged"


# Damage that SQLite does not see: a value is another one, of its type or not.
CHANGES = {
    "keys of other blocks": "UPDATE OR REPLACE Cache SET key = replace(key, 'item2:', 'item4:')",
    "a block's place": "UPDATE OR REPLACE Cache SET key = replace(key, 'item4:0', 'item4:3')",
    "keys of other contents": (
        "UPDATE OR REPLACE Cache SET key = replace(key, '=content1:', '=content5:')"
    ),
    "swapped files": (
        "UPDATE Cache SET filename = (SELECT max(filename) FROM Cache) WHERE filename IS NOT NULL"
    ),
    "swapped values": "UPDATE Cache SET value = (SELECT max(value) FROM Cache) WHERE mode = 1",
    "tags of others": "UPDATE Cache SET tag = (SELECT max(tag) FROM Cache)",
    "serials": "UPDATE Cache SET access_count = access_count + 1",
    "serials of text": "UPDATE Cache SET access_count = 'x'",
    "filenames that are numbers": "UPDATE Cache SET filename = 5",
    "filenames that are bytes": "UPDATE Cache SET filename = x'0001'",
    "filenames elsewhere": "UPDATE Cache SET filename = '../../etc/passwd'",
    "a filename with NUL": "UPDATE Cache SET filename = 'a' || char(0)",
    "sizes": "UPDATE Cache SET size = -1",
    "sizes of text": "UPDATE Cache SET size = 'x'",
    "times": "UPDATE Cache SET access_time = 'x', expire_time = 1",
    "modes": "UPDATE Cache SET mode = 4",
    "raw": "UPDATE Cache SET raw = 0",
    "tags that are none": "UPDATE Cache SET tag = NULL",
    "keys that are none": "UPDATE Cache SET key = NULL",
    "a setting of text": "UPDATE Settings SET value = 'x' WHERE key = 'size_limit'",
    "a size of text": "UPDATE Settings SET value = 'x' WHERE key = 'size'",
    "a size below zero": "UPDATE Settings SET value = -5 WHERE key = 'size'",
    "a size of all disks": "UPDATE Settings SET value = 1 << 60 WHERE key = 'size'",
    "a setting of another's": "INSERT INTO Settings VALUES ('disk_other', 1)",
    "an attribute": "INSERT INTO Settings VALUES ('directory', '/')",
    "a setting less": "DELETE FROM Settings WHERE key = 'size'",
    "no table": "DROP TABLE Cache",
    "no settings": "DROP TABLE Settings",
    "no index": "DROP INDEX Cache_key_raw",
    "other columns": "ALTER TABLE Cache RENAME COLUMN access_time TO access_timf",
    "a trigger that fails": (
        "CREATE TRIGGER t AFTER INSERT ON Cache BEGIN SELECT no_such_function(); END"
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damage_that_sqlite_does_not_see_is_found(killed: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "blocks"
    shutil.copytree(killed, directory)
    changed(directory, CHANGES[name])

    require_right(directory, name)


@pytest.mark.parametrize(
    "text",
    [b"Cache_access_time ON", b"AFTER INSERT ON Cache", b"expire_time REAL", b"TABLE Settings"],
)
def test_schema_that_is_no_utf_8_is_found(tmp_path: Path, text: bytes) -> None:
    """What SQLite then says is none, either."""
    cache = opened(tmp_path / "blocks")
    fill(cache)
    cache.close()
    database = tmp_path / "blocks/cache.db"
    content = database.read_bytes()
    for place in range(0, len(text), 7):
        damaged = bytearray(content)
        damaged[content.index(text) + place] ^= 0x80
        database.write_bytes(damaged)

        require_right(tmp_path / "blocks", f"{text!r} {place}")

        for log in ("-wal", "-shm"):
            database.with_name(f"cache.db{log}").unlink(missing_ok=True)


def test_schema_is_the_one_that_is_expected(tmp_path: Path) -> None:
    """Else every cache would be made anew whenever it is opened."""
    opened(tmp_path / "blocks").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "blocks/cache.db")) as database:
        found = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}

    assert found == opening.SCHEMA.keys()


def test_any_bit_of_the_schema_may_flip(tmp_path: Path) -> None:
    """SQLite makes do with what it can read: rows without numbers, sizes that are not counted."""
    cache = opened(tmp_path / "blocks")
    fill(cache)
    cache.close()
    database = tmp_path / "blocks/cache.db"
    content = database.read_bytes()
    primary = content.index(b"PRIMARY KEY, key BLOB") + 5
    texts = [match.span() for match in re.finditer(rb"CREATE [A-Z]+ [ -~]*", content)]
    chance = random.Random(5)
    flips = [(primary, 1)]
    while len(flips) < 25:
        flips.append((chance.randrange(*chance.choice(texts)), 1 << chance.randrange(7)))
    for place, bit in flips:
        damaged = bytearray(content)
        damaged[place] ^= bit
        database.write_bytes(damaged)

        about = content[place - 20 : place + 20]
        require_right(tmp_path / "blocks", f"bit {bit} in the middle of {about!r}")

        for log in ("-wal", "-shm"):
            database.with_name(f"cache.db{log}").unlink(missing_ok=True)


class Exploit:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self._mark),))


def test_no_pickle_is_loaded_from_any_file_of_the_cache(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every column, key, setting and file, also where diskcache unpickles by itself."""
    pickled = pickle.dumps(Exploit(tmp_path / "mark"))
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *what, **how: pytest.fail("something unpickles"))
    as_sql = f"x'{pickled.hex()}'"
    statements = [
        f"UPDATE Cache SET mode = 4, value = {as_sql}",
        "UPDATE Cache SET mode = 4",
        f"UPDATE Cache SET mode = 4, raw = 0, value = {as_sql}",
        f"UPDATE OR REPLACE Cache SET raw = 0, key = {as_sql}",
        f"UPDATE Cache SET tag = {as_sql}",
        "UPDATE Settings SET value = 0 WHERE key = 'disk_min_file_size'",
        f"UPDATE Settings SET value = {as_sql} WHERE key = 'disk_pickle_protocol'",
    ]
    for number, statement in enumerate(statements):
        directory = tmp_path / str(number)
        shutil.copytree(killed, directory)
        changed(directory, statement)
        for path in files_by_kind(directory)["blocks"]:
            path.write_bytes(pickled)
        require_right(directory, statement)

    assert not (tmp_path / "mark").exists()


def test_cache_of_a_newer_version_is_refused_and_left_as_it_is(
    killed: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "blocks"
    shutil.copytree(killed, directory)
    write_sealed(directory / "format", b"2")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    with pytest.raises(UsageError, match=r"of a newer version.*--cache-dir") as refusal:
        BlockCache(directory).open()

    assert "\n" not in str(refusal.value)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_blocks_of_an_older_version_give_way_to_new_ones(killed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    shutil.copytree(killed, directory)
    changed(
        directory,
        "UPDATE Cache SET key = '3' || substr(key, 2), tag = substr(tag, 5), access_count = 0",
    )
    (directory / "format").unlink()

    require_right(directory, "as 0.1.0 left it")


@pytest.mark.expects_log("fails, reading without a cache.*newer version")
def test_cache_that_a_newer_version_took_over_is_done_without(tmp_path: Path) -> None:
    cache = opened(tmp_path / "blocks")
    fill(cache)
    shutil.rmtree(tmp_path / "blocks")
    (tmp_path / "blocks").mkdir(mode=0o700)
    write_sealed(tmp_path / "blocks/format", b"2")

    cache.store([(BlockKey("item", 0), MemoryBlock(b"x"))])
    cache.store([(BlockKey("item", 0), MemoryBlock(b"x"))])

    assert cache.load(BlockKey("item", 0), 1) is None
    assert sorted(os.listdir(tmp_path / "blocks")) in (["format"], ["format", "lock"])
    cache.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["0", "f", "lock", "format", "cache.db-wal", "swept"])
def test_what_is_in_the_place_of_a_file_or_directory_gives_way(
    killed: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    directory = tmp_path / "blocks"
    shutil.copytree(killed, directory)
    path = directory / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make(path)

    require_right(directory, name)
