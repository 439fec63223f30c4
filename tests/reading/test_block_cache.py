"""The block cache: what goes in comes out whole, or not at all."""

from __future__ import annotations

import logging
import os
import pickle
import sqlite3
import threading
from pathlib import Path

import pytest

from dserverfs.base.checksums import CHUNK_BYTES
from dserverfs.base.disk_space import GIB, MAX_SIZE_BYTES, default_limit
from dserverfs.base.errors import UsageError
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.block_files import MIN_FILE_SIZE
from dserverfs.reading.cache.block_keys import BlockKey
from dserverfs.reading.cache.blocks import DamagedBlock, FileBlock, MemoryBlock

pytest_plugins = ["tests.support.cache_fixtures"]

SMALL = b"small block"
LARGE = os.urandom(MIN_FILE_SIZE * 2)
KEY = BlockKey("dserver://h/s3/b/uuid/item", 0)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "blocks").glob("*/*.blk"))


@pytest.mark.parametrize("data", [b"x", SMALL, LARGE], ids=len)
def test_block_comes_out_as_it_went_in(cache: BlockCache, data: bytes) -> None:
    cache.store([(KEY, MemoryBlock(data))])

    block = cache.load(KEY, len(data))

    assert block is not None
    assert bytes(block.read(0, len(data) + 10)) == data
    assert bytes(block.read(3, 4)) == data[3:7]


def test_small_block_is_a_row_and_large_one_a_file(cache: BlockCache, tmp_path: Path) -> None:
    cache.store([(KEY, MemoryBlock(SMALL))])
    assert isinstance(cache.load(KEY, len(SMALL)), MemoryBlock)
    assert files(tmp_path) == []

    cache.store([(KEY, MemoryBlock(LARGE))])
    assert isinstance(cache.load(KEY, len(LARGE)), FileBlock)
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_block_that_is_stored_again_or_twice_at_once_takes_up_space_once(
    cache: BlockCache, tmp_path: Path
) -> None:
    beside = BlockKey(KEY.item, 1)
    cache.store([(KEY, MemoryBlock(LARGE)), (beside, MemoryBlock(LARGE))])
    again = {KEY: MemoryBlock(LARGE[::-1])}

    stored = cache.store([*again.items(), *again.items()])

    assert bytes(stored[KEY].read(0, len(LARGE))) == LARGE[::-1]
    for key, data in ((KEY, LARGE[::-1]), (beside, LARGE)):
        block = cache.load(key, len(LARGE))
        assert block is not None
        assert bytes(block.read(0, len(LARGE))) == data
    assert len(files(tmp_path)) == 2
    assert cache.count(KEY.item) == 2


def test_block_survives_reopening(cache: BlockCache, tmp_path: Path) -> None:
    cache.store([(KEY, MemoryBlock(LARGE))])
    cache.close()
    again = BlockCache(tmp_path / "blocks")
    again.open()

    block = again.load(KEY, len(LARGE))

    assert block is not None
    assert bytes(block.read(0, len(LARGE))) == LARGE
    again.close()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
def test_block_of_another_length_is_a_miss(
    cache: BlockCache, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store([(KEY, MemoryBlock(data))])

    with caplog.at_level(logging.CRITICAL):
        assert cache.load(KEY, len(data) + 1) is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("truncate", marks=pytest.mark.expects_log("damaged block")),
        pytest.param("link", marks=pytest.mark.expects_log("damaged block")),
        "unlink",
    ],
)
def test_damaged_file_is_a_miss(cache: BlockCache, tmp_path: Path, damage: str) -> None:
    cache.store([(KEY, MemoryBlock(LARGE))])
    (path,) = files(tmp_path)
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "unlink":
        path.unlink()
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")

    assert cache.load(KEY, len(LARGE)) is None
    assert cache.count(KEY.item) == (damage == "unlink"), "a damaged one is forgotten"

    cache.store([(KEY, MemoryBlock(LARGE))])
    block = cache.load(KEY, len(LARGE))
    assert block is not None
    assert bytes(block.read(0, len(LARGE))) == LARGE


def test_wrong_byte_in_a_file_is_found_when_its_part_is_read(
    cache: BlockCache, tmp_path: Path
) -> None:
    cache.store([(KEY, MemoryBlock(LARGE))])
    (path,) = files(tmp_path)
    content = bytearray(LARGE)
    content[CHUNK_BYTES + 5] ^= 1
    path.write_bytes(content)

    block = cache.load(KEY, len(LARGE))

    assert block is not None
    assert bytes(block.read(0, 7)) == LARGE[:7]
    with pytest.raises(DamagedBlock):
        block.read(CHUNK_BYTES, 1)


@pytest.mark.expects_log("damaged block")
def test_wrong_byte_in_a_row_is_a_miss(cache: BlockCache, tmp_path: Path) -> None:
    cache.store([(KEY, MemoryBlock(SMALL))])
    database = sqlite3.connect(tmp_path / "blocks" / "cache.db")
    with database:
        database.execute("UPDATE Cache SET value = ?", (SMALL[:-1] + b"!",))
    database.close()

    assert cache.load(KEY, len(SMALL)) is None


VERIFIED = "=md5sum_hexdigest:0123:11"


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
def test_verified_block_is_found_by_its_content_alone(
    cache: BlockCache, tmp_path: Path, data: bytes
) -> None:
    block = MemoryBlock(data)
    cache.store([(KEY, block)])
    before = files(tmp_path)

    cache.enter_verified(KEY.item, VERIFIED, [block.serial])

    found = cache.load(BlockKey(VERIFIED, 0), len(data))
    assert found is not None
    assert bytes(found.read(0, len(data))) == data
    assert cache.load(KEY, len(data)) is None
    assert files(tmp_path) == before, "nothing was written anew"
    assert cache.count(VERIFIED) == 1


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
def test_block_that_was_not_the_compared_one_is_not_entered(cache: BlockCache, data: bytes) -> None:
    """It was fetched again meanwhile, here or by another process, be it with the same CRC-32."""
    compared = MemoryBlock(data)
    cache.store([(KEY, MemoryBlock(data))])

    for serial in (compared.serial, 0):
        cache.enter_verified(KEY.item, VERIFIED, [serial])

    assert cache.load(BlockKey(VERIFIED, 0), len(data)) is None
    assert cache.load(KEY, len(data)) is not None


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
def test_block_is_known_as_the_same_arrival_when_it_is_loaded(
    cache: BlockCache, data: bytes
) -> None:
    first, second = MemoryBlock(data), MemoryBlock(data)
    cache.store([(KEY, first), (KEY._replace(block=1), second)])

    found = [cache.load(KEY._replace(block=block), len(data)) for block in (0, 1)]

    assert [block.serial for block in found if block is not None] == [first.serial, second.serial]
    assert first.serial != second.serial


def test_content_that_is_there_already_is_kept_once(cache: BlockCache, tmp_path: Path) -> None:
    for item in ("one", "two"):
        block = MemoryBlock(LARGE)
        cache.store([(BlockKey(item, 0), block)])
        cache.enter_verified(item, VERIFIED, [block.serial])

    assert cache.load(BlockKey(VERIFIED, 0), len(LARGE)) is not None
    assert len(files(tmp_path)) == 1


def test_blocks_are_counted_by_item(cache: BlockCache) -> None:
    for item, block in (("a/1", 0), ("a/1", 1), ("a/10", 0), ("a/2", 0)):
        cache.store([(BlockKey(item, block), MemoryBlock(SMALL))])

    assert [cache.count(item) for item in ("a/1", "a/10", "a/3", "a/")] == [2, 1, 0, 0]


class Exploit:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(Exploit.mark),))

    mark = Path()


@pytest.mark.parametrize(
    "raw", [0, pytest.param(1, marks=pytest.mark.expects_log("damaged block"))]
)
def test_nothing_is_ever_unpickled(cache: BlockCache, tmp_path: Path, raw: int) -> None:
    Exploit.mark = tmp_path / "mark"
    cache.store([(KEY, MemoryBlock(SMALL))])
    database = sqlite3.connect(tmp_path / "blocks" / "cache.db")
    with database:
        database.execute(
            "UPDATE Cache SET mode = 4, value = ?, raw = ?", (pickle.dumps(Exploit()), raw)
        )
    database.close()

    assert cache.load(KEY, len(SMALL)) is None

    assert not Exploit.mark.exists()


@pytest.mark.expects_log("damaged block")
def test_row_that_names_a_file_outside_is_a_miss(cache: BlockCache, tmp_path: Path) -> None:
    cache.store([(KEY, MemoryBlock(LARGE))])
    (path,) = files(tmp_path)
    path.rename(tmp_path / "outside")
    database = sqlite3.connect(tmp_path / "blocks" / "cache.db")
    with database:
        database.execute("UPDATE Cache SET filename = '../outside'")
    database.close()

    assert cache.load(KEY, len(LARGE)) is None


@pytest.mark.expects_log("made anew")
def test_corrupt_database_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "blocks"
    directory.mkdir(mode=0o700)
    (directory / "cache.db").write_bytes(b"garbage" * 1000)
    cache = BlockCache(directory)

    cache.open()
    cache.store([(KEY, MemoryBlock(SMALL))])

    assert cache.load(KEY, len(SMALL)) is not None
    assert "made anew" in caplog.text
    cache.close()


@pytest.mark.parametrize("data", [SMALL * 100, LARGE], ids=["rows", "files"])
def test_least_recently_used_blocks_give_way(tmp_path: Path, data: bytes) -> None:
    """Also if they were used by a process that has ended, and while they stayed at hand."""
    keys = [BlockKey("item", number) for number in range(60)]
    cache = BlockCache(tmp_path / "blocks")
    cache.open()
    for key in keys:
        cache.store([(key, MemoryBlock(data))])
    at_hand = cache.load(keys[1], len(data))
    assert at_hand is not None
    for key in keys[20:]:
        assert cache.load(key, len(data)) is not None
    assert cache.load(keys[0], len(data)) is not None
    cache.note_use(at_hand)
    cache.close()
    cache.open()

    cache.evict(50 * len(data))

    held = {key.block for key in keys if cache.load(key, len(data)) is not None}
    assert {0, 1} < held, "used last"
    assert len(held) == 10
    assert held - {0, 1} == set(range(52, 60)), "in the order of their use"
    if data is LARGE:
        assert len(files(tmp_path)) == 10
    cache.close()


def test_size_limit_holds(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", size_limit=40 * len(LARGE))
    cache.open()

    for number in range(100):
        cache.store([(BlockKey("item", number), MemoryBlock(LARGE))])
        assert len(files(tmp_path)) <= 41

    assert cache.load(BlockKey("item", 99), len(LARGE)) is not None
    cache.close()


def test_limit_by_default_counts_what_is_held_as_free(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    expected = min(MAX_SIZE_BYTES, (free + 10 * GIB) // 2)

    assert default_limit(tmp_path, 10 * GIB) == pytest.approx(expected, rel=0.05)


@pytest.mark.expects_log("No space left")
def test_full_disk_means_no_cache_and_no_error(
    cache: BlockCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data[:5000], 0)  # a part, as of a disk that fills up

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        cache.store([(KEY, MemoryBlock(LARGE))])

    assert "No space left" in caplog.text
    assert cache.load(KEY, len(LARGE)) is None
    assert not [*(tmp_path / "blocks").rglob("*.blk")]


def test_directory_of_another_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        cache = BlockCache(Path("/root-owned-or-missing/blocks"))
    else:
        directory = tmp_path / "blocks"
        directory.mkdir()
        os.chown(directory, 12345, 12345)
        cache = BlockCache(directory)

    with pytest.raises(UsageError):
        cache.open()


def test_directory_is_made_private(tmp_path: Path) -> None:
    directory = tmp_path / "blocks"
    directory.mkdir(mode=0o755)
    cache = BlockCache(directory)

    cache.open()

    assert directory.stat().st_mode & 0o777 == 0o700
    cache.close()


def test_threads_and_a_second_cache_share_one_directory(cache: BlockCache, tmp_path: Path) -> None:
    other = BlockCache(tmp_path / "blocks")
    other.open()
    wrong: list[int] = []

    def work(mine: BlockCache, start: int) -> None:
        for number in range(start, start + 20):
            data = number.to_bytes(4, "big") * 30_000
            mine.store([(BlockKey("item", number), MemoryBlock(data))])
            block = other.load(BlockKey("item", number), len(data))
            if block is None or bytes(block.read(0, len(data))) != data:
                wrong.append(number)

    threads = [
        threading.Thread(target=work, args=(mine, 20 * place))
        for place, mine in enumerate((cache, other, cache, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []
    other.close()


def test_cache_of_size_nothing_keeps_nothing_and_reads_what_others_kept(
    cache: BlockCache, tmp_path: Path
) -> None:
    cache.store([(KEY, MemoryBlock(LARGE))])
    without = BlockCache(tmp_path / "blocks", size_limit=0)
    without.open()
    other = KEY._replace(block=1)

    for data in (SMALL, LARGE):
        assert without.store([(other, MemoryBlock(data))]) == {}

    assert without.load(KEY, len(LARGE)) is not None
    assert cache.load(other, len(LARGE)) is None
    assert len(files(tmp_path)) == 1
    without.close()
    cache.store([(other, MemoryBlock(LARGE))])
    assert cache.load(KEY, len(LARGE)) is not None, "the others' limit is theirs"
