"""MD5 of local files: right, read once, and never that of what a file was before."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from dserverfs.base.errors import Cancelled, ItemChanged
from dserverfs.base.hashes import PIECE_BYTES
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.progress import Progress
from dserverfs.writing.staging import file_hashes
from dserverfs.writing.staging.file_hashes import Hashes, Stamp
from tests.support.few_threads import no_more_threads

CONTENTS = {
    "empty": b"",
    "one": b"1",
    "nested/piece-1": os.urandom(PIECE_BYTES - 1),
    "nested/piece": os.urandom(PIECE_BYTES),
    "nested/piece+1": os.urandom(PIECE_BYTES + 1),
    "ünïcödé\n": b"abc",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "items"
    for relpath, content in CONTENTS.items():
        path = root / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def hashes(root: Path) -> Iterator[Hashes]:
    with Hashes(root.parent / "hashes.db", root) as hashes:
        yield hashes


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_hash_is_that_of_the_content(hashes: Hashes, root: Path) -> None:
    for relpath, content in CONTENTS.items():
        assert hashes.of(root / relpath) == hashlib.md5(content).hexdigest()


def test_hashes_of_blocks_come_with_it(hashes: Hashes, root: Path) -> None:
    for relpath, content in CONTENTS.items():
        digest = hashes.of(root / relpath)
        blocks = [content[:PIECE_BYTES], content[PIECE_BYTES:]] if len(content) > BLOCK_SIZE else []

        expected = b"".join(blake3(block).digest() for block in blocks)
        assert hashes.known_blocks(root / relpath, digest) == expected
        assert hashes.known_blocks(root / relpath, "0" * 32) is None
    assert hashes.bytes_read == sum(map(len, CONTENTS.values()))


def test_hashes_of_blocks_are_not_known_of_a_file_that_changed_or_was_not_hashed(
    hashes: Hashes, root: Path
) -> None:
    file = root / "nested/piece+1"
    before = hashes.known_blocks(file, md5(file))
    digest = hashes.of(file)
    known = hashes.known_blocks(file, digest)
    os.utime(file)
    changed = hashes.known_blocks(file, digest)
    file.unlink()

    assert known is not None
    assert [before, changed, hashes.known_blocks(file, digest)] == [None] * 3


def test_all_are_hashed_with_progress_to_the_end(hashes: Hashes, root: Path) -> None:
    seen: list[Progress] = []
    files = [root / relpath for relpath in CONTENTS]

    digests = hashes.all_of(files, on_progress=seen.append)

    assert digests == {file: md5(file) for file in files}
    total = sum(map(len, CONTENTS.values()))
    assert seen[-1] == (total, total, len(CONTENTS), len(CONTENTS))
    assert seen == sorted(seen)


@pytest.mark.parametrize("allowed", [0, 1])
def test_all_are_hashed_with_the_threads_that_there_can_be(root: Path, allowed: int) -> None:
    files = [root / relpath for relpath in CONTENTS]

    with Hashes(root.parent / "hashes.db", root, threads=3) as hashes, no_more_threads(allowed):
        digests = hashes.all_of(files)

    assert digests == {file: md5(file) for file in files}


def test_no_files_are_no_hashes(hashes: Hashes) -> None:
    assert hashes.all_of([]) == {}


def test_file_is_read_once_even_by_another_process_later(hashes: Hashes, root: Path) -> None:
    files = [root / relpath for relpath in CONTENTS]
    first = hashes.all_of(files)
    total = hashes.bytes_read

    again = hashes.all_of(files)
    with Hashes(root.parent / "hashes.db", root) as later:
        assert [later.of(file) for file in files] == [first[file] for file in files]
        assert later.bytes_read == 0

    assert again == first
    assert total == sum(map(len, CONTENTS.values())) == hashes.bytes_read


def test_many_who_ask_at_once_cause_one_reading(hashes: Hashes, root: Path) -> None:
    file = root / "nested/piece"

    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(hashes.of, [file] * 32))

    assert digests == {md5(file)}
    assert hashes.bytes_read == PIECE_BYTES


def rewrite(path: Path) -> None:
    path.write_bytes(b"2")


def write_with_old_times(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def put_in_its_place(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"2")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [rewrite, write_with_old_times, put_in_its_place])
def test_changed_file_of_the_same_size_is_read_again(
    hashes: Hashes, root: Path, change: Callable[[Path], None]
) -> None:
    file = root / "one"
    hashes.of(file)

    change(file)

    assert hashes.of(file) == hashlib.md5(b"2").hexdigest()


def test_file_that_is_changed_right_after_each_hash_is_never_stale(
    hashes: Hashes, root: Path
) -> None:
    file = root / "one"
    for number in range(200):
        content = b"%d" % (number % 10)
        file.write_bytes(content)

        assert hashes.of(file) == hashlib.md5(content).hexdigest()


def test_stamp_of_a_file_system_that_counts_seconds_settles_after_one() -> None:
    now_ns = time.clock_gettime_ns(file_hashes.CLOCK_REALTIME_COARSE)
    second_ns = now_ns // 1_000_000_000 * 1_000_000_000

    assert not Stamp(1, second_ns, second_ns, 1).is_settled()
    assert Stamp(1, second_ns - 2_000_000_000, second_ns - 2_000_000_000, 1).is_settled()
    assert not Stamp(1, now_ns + 10**9, now_ns + 10**9 + 1, 1).is_settled()


def test_file_that_changes_while_it_is_read_is_read_again(
    hashes: Hashes, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "nested/piece+1"
    pread = os.pread
    changed: list[int] = []

    def change_between(descriptor: int, count: int, offset: int) -> bytes:
        if offset and not changed:
            changed.append(offset)
            file.write_bytes(b"x" * (PIECE_BYTES + 1))
        return pread(descriptor, count, offset)

    monkeypatch.setattr("dserverfs.base.hashes.os.pread", change_between)

    assert hashes.of(file) == hashlib.md5(b"x" * (PIECE_BYTES + 1)).hexdigest()


def test_file_that_keeps_changing_is_named(
    hashes: Hashes, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "nested/piece"
    pread = os.pread

    def change_always(descriptor: int, count: int, offset: int) -> bytes:
        with file.open("ab") as appended:
            appended.write(b"x")
        return pread(descriptor, count, 0) if offset == 0 else b""

    monkeypatch.setattr("dserverfs.base.hashes.os.pread", change_always)

    with pytest.raises(ItemChanged) as failure:
        hashes.of(file)
    assert failure.value.relpath == "nested/piece"


def test_stop_ends_it_and_what_is_hashed_is_kept(hashes: Hashes, root: Path) -> None:
    files = [root / relpath for relpath in CONTENTS]
    stop = threading.Event()

    def stop_soon(progress: Progress) -> None:
        if progress.items_done == 1:
            stop.set()

    with pytest.raises(Cancelled):
        hashes.all_of(files, on_progress=stop_soon, stop=stop)
    read = hashes.bytes_read
    assert hashes.all_of(files) == {file: md5(file) for file in files}

    assert read > 0
    assert hashes.bytes_read < read + sum(map(len, CONTENTS.values()))


def test_missing_file_is_an_error_and_the_rest_ends(hashes: Hashes, root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hashes.of(root / "missing")
    with pytest.raises(FileNotFoundError):
        hashes.all_of([root / "one", root / "missing"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash-")]


@pytest.mark.expects_log("hashed again")
def test_damaged_database_is_replaced(root: Path) -> None:
    database = root.parent / "damaged.db"
    database.write_bytes(b"nonsense" * 1000)

    with Hashes(database, root) as hashes:
        assert hashes.of(root / "one") == hashlib.md5(b"1").hexdigest()
    with Hashes(database, root) as hashes:
        assert hashes.of(root / "one") == hashlib.md5(b"1").hexdigest()
        assert hashes.bytes_read == 0
