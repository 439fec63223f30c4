"""The mutants that no test should kill, each with its reason; `scripts/mutate` leaves them out."""

from __future__ import annotations

from pathlib import Path

_SAME = "the program does the same"
_MOMENT = "the difference is one moment of a clock, or one byte of a limit of ours"
_SLOWER = "it only takes longer, or asks more often"
_RACE = "it differs only if another process or thread does the same at the same moment"
_TYPES = "it is there for the type checker: a condition that the other one contains, an alias"


def _each(old: str, *new: str) -> list[tuple[str, str]]:
    """Return several mutants of the same lines."""
    return [(old, one) for one in new]


# By module and reason: what is in the source, and what the mutant has in its place.
EXPLAINED: dict[str, dict[str, list[tuple[str, str]]]] = {
    "base/block_hashes": {
        _SLOWER: [  # a million small items are not sorted
            (
                "for identifier, hash, size_in_bytes in"
                " sorted(item for item in items if has_hashes(item[2])):",
                "for identifier, hash, size_in_bytes in sorted(item for item in items):",
            )
        ],
    },
    "base/limits": {
        _SLOWER: [  # what is said of letters says it of bytes as well
            (
                "and (value.isascii() or _utf8_length(value) is not None)",
                "and ((_utf8_length(value) is not None))",
            ),
            (
                'if len(relpath) > MAX_RELPATH_BYTES or relpath.count("/")'
                " >= MAX_RELPATH_COMPONENTS:",
                "if (relpath.count('/') >= MAX_RELPATH_COMPONENTS):",
            ),
        ],
    },
    "base/durable_files": {
        _RACE: [
            (
                "fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)",
                "fd = os.open(scratch, (os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC, mode)",
            )
        ],
        _MOMENT: [
            (
                "if left.stat().st_mtime < time.time() - older_than_s:",
                "if left.stat().st_mtime <= time.time() - older_than_s:",
            )
        ],
    },
    "base/locks": {
        _MOMENT: [
            ("if time.monotonic() >= end_s:", "if time.monotonic() > end_s:"),
            (
                'return os.pread(fd, 4096, 0).decode("utf-8", "replace")',
                'return os.pread(fd, 4097, 0).decode("utf-8", "replace")',
            ),
        ]
    },
    "writing/edits/journal": {
        _SAME: [("self._count = itertools.count(1)", "self._count = itertools.count(2)")],
        _RACE: [
            (
                "(session / name).unlink(missing_ok=True)",
                "(session / name).unlink(missing_ok=False)",
            ),
            (
                "shutil.rmtree(session, ignore_errors=True)",
                "shutil.rmtree(session, ignore_errors=False)",
            ),
        ],
    },
    "writing/edits/sender": {
        _SLOWER: [  # what must not be sent is looked at once more when its turn comes
            (
                "self._local.wait_until_closed(min(timeout_s, LATE_CLOSE_S))",
                "self._local.wait_until_closed(max(timeout_s, LATE_CLOSE_S))",
            ),
            (
                "if file.note.is_complete and file not in self._sending.values():",
                "if (file not in self._sending.values()):",
            ),
            (
                "if file.note.is_complete and file not in self._sending.values():",
                "if (file.note.is_complete):",
            ),
            ("self._refused.discard(file)", "pass"),
            ("self._refused.clear()", "pass"),
        ],
        _TYPES: [
            (
                "if file.target is None or not file.is_unsent or not file.note.is_complete:",
                "if (not file.is_unsent or not file.note.is_complete):",
            )
        ],
        _SAME: [
            (
                "change = Change(target, content, 0, None, None)",
                "change = Change(target, content, 1, None, None)",
            ),
            (  # nobody looks at what becomes of the thread's work
                "pass # logged, and kept in its note",
                "raise # logged, and kept in its note",
            ),
        ],
    },
    "writing/edits/local_file": {_SAME: [("self.changes = 1", "self.changes = 2")]},
    "reading/cache/block_cache": {
        _SAME: [
            ("self._space_left = True", "self._space_left = False"),  # it is looked at first
            (
                "for text, (key, length) in zip(keys, wanted, strict=True)",
                "for text, (key, length) in zip(keys, wanted, strict=False)",
            ),
            (
                "for (key, block), value in zip(large, values, strict=True)",
                "for (key, block), value in zip(large, values, strict=False)",
            ),
            (
                "for (key, block), value, row in zip(large, values, rows, strict=True)",
                "for (key, block), value, row in zip(large, values, rows, strict=False)",
            ),
            # No block has the serial 0.
            (
                "moves = [ (BlockKey(item, index).as_text(), BlockKey(content, index).as_text(),"
                " serial) for index, serial in enumerate(serials) if serial ]",
                "moves = [(BlockKey(item, index).as_text(), BlockKey(content, index).as_text(),"
                " serial) for index, serial in enumerate(serials)]",
            ),
            ("if table is not None and serial:", "if (table is not None):"),
            # A cache without a table is opened anew in any case.
            (
                "if self._table is not None and self._watch.is_gone():",
                "if (self._watch.is_gone()):",
            ),
            # What was freed was told of just now.
            *_each(
                "return freed > 0 or self._watch.is_recent()",
                "return (self._watch.is_recent())",
                "return freed > 1 or self._watch.is_recent()",
            ),
            (  # a connection of a thread ends with it
                "table.close() # this thread's connection",
                "pass # this thread's connection",
            ),
        ],
        _SLOWER: [
            ("if table is None or not wanted:", "if (table is None):"),
            ("if table is None or not used:", "if (table is None):"),
            ("time.sleep(0.02)", "pass"),
            *_each(  # a row that the one of its file replaces at once
                "small = [(k.as_text(), block) for k, block in blocks if len(block.data)"
                " < MIN_FILE_SIZE]",
                "small = [(k.as_text(), block) for k, block in blocks]",
                "small = [(k.as_text(), block) for k, block in blocks if len(block.data)"
                " <= MIN_FILE_SIZE]",
            ),
            ("if due or excess > 0:", "if due or excess >= 0:"),  # it evicts nothing then
            ("if excess > 0:", "if excess >= 0:"),
        ],
        _MOMENT: [
            ("if due or excess > 0:", "if due or excess > 1:"),
            ("if excess > 0:", "if excess > 1:"),
            (
                "has_limit = self._size_limit is None or self._size_limit > 0",
                "has_limit = self._size_limit is None or self._size_limit > 1",
            ),
            (
                "if time.monotonic() >= end_s or not self._watch.is_recent():",
                "if time.monotonic() > end_s or not self._watch.is_recent():",
            ),
            (
                "if now_s - self._space_checked_s < self._tuning.free_space_check_s:",
                "if now_s - self._space_checked_s <= self._tuning.free_space_check_s:",
            ),
        ],
        _TYPES: [
            (
                "stored = { key: self._blocks.stored(block, value.file, row) for (key, block),"
                " value, row in zip(large, values, rows, strict=True) if value.file is not None }",
                "stored = {key: self._blocks.stored(block, value.file, row) for (key, block),"
                " value, row in zip(large, values, rows, strict=True)}",
            ),
        ],
    },
    "reading/cache/write_behind": {
        _SLOWER: [("block.compute_checksums()", "pass")],  # they are made when they are needed
    },
    "writing/staging/survey": {
        _MOMENT: [
            (
                "content = file.read(MAX_README_BYTES + 1)",
                "content = file.read(MAX_README_BYTES + 2)",
            )
        ],
    },
    "writing/upload/uploader": {
        _TYPES: [  # every server sets a limit
            (
                "if limit is not None and item.size_in_bytes > limit:",
                "if (item.size_in_bytes > limit):",
            )
        ],
    },
    "reading/cache/block_files": {
        _RACE: [
            (
                "flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC",
                "flags = (os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC",
            ),
            (
                "os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)",
                "os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=False)",
            ),
        ],
        _SAME: [
            (
                "StoredFile(name, file, start) for name, start"
                " in zip(names, starts[:-1], strict=True)",
                "StoredFile(name, file, start) for name, start"
                " in zip(names, starts[:-1], strict=False)",
            ),
        ],
    },
    "reading/cache/blocks": {
        _SAME: [  # a random number of 63 bits is never 0; 62 of them are as good
            (
                'return (int.from_bytes(os.urandom(8), "big") >> 1) | 1',
                "return (int.from_bytes(os.urandom(8), 'big') >> 1)",
            ),
            (
                'return (int.from_bytes(os.urandom(8), "big") >> 1) | 1',
                'return (int.from_bytes(os.urandom(8), "big") >> 2) | 1',
            ),
            (
                'return (int.from_bytes(os.urandom(8), "big") >> 1) | 1',
                'return (int.from_bytes(os.urandom(8), "big") >> 1) | 2',
            ),
            ("if offset >= stop:", "if offset > stop:"),
            ("return offset, offset, False", "return offset, offset, True"),
        ],
        _TYPES: [("Block = MemoryBlock | FileBlock", "Block = (MemoryBlock)")],
    },
    "reading/verification": {
        _TYPES: [
            (
                "if hashing is None or self._hashes.is_verified(content):",
                "if (self._hashes.is_verified(content)):",
            ),
        ],
        _RACE: [
            (
                "if hashing is None or self._hashes.is_verified(content):",
                "if (hashing is None):",
            ),
            (
                "block = fetched[1] if fetched and fetched[0] == index else None",
                "block = fetched[1] if (fetched) else None",
            ),
        ],
        _SLOWER: [
            (
                "if index < content.number_of_blocks:",
                "if index <= content.number_of_blocks:",
            ),
            (  # read-ahead, here and in the next two
                "run = ahead.plan(index * BLOCK_SIZE, BLOCK_SIZE, content.number_of_blocks)",
                "run = ahead.plan((index // BLOCK_SIZE), BLOCK_SIZE, content.number_of_blocks)",
            ),
            ("if run.length:", "if not (run.length):"),
            ("self._filler.request_ahead(content, run)", "pass"),
            (
                "self._pool.shutdown(wait=False, cancel_futures=True)",
                "self._pool.shutdown(wait=False, cancel_futures=False)",
            ),
        ],
    },
    "reading/cache/eviction": {
        _SLOWER: [  # the files of a row that went with another one give back nothing more
            (
                "if freed < size_in_bytes and row not in evicted:",
                "if (freed < size_in_bytes):",
            )
        ],
        _MOMENT: [
            (
                "if 0 <= time.time() - mark.stat().st_mtime < SWEEP_EVERY_S:",
                "if 0 <= time.time() - mark.stat().st_mtime <= SWEEP_EVERY_S:",
            ),
            (
                "if time.time() - path.lstat().st_mtime >= older_than_s:",
                "if time.time() - path.lstat().st_mtime > older_than_s:",
            ),
        ],
    },
    "reading/block_hashing": {
        _SAME: [
            (
                "for index, expected in zip(indices, self._pages.find(content, indices),"
                " strict=True):",
                "for index, expected in zip(indices, self._pages.find(content, indices),"
                " strict=False):",
            ),
            ("raise", "pass"),  # another error ends the thread's work
            (  # after the end no turn is taken
                "has_more = self._advancing.get(hashing, False) or has_more",
                "has_more = self._advancing.get(hashing, True) or has_more",
            ),
        ],
        _TYPES: [
            (
                "hashing is not None and hashing in self._advancing and (hashing in"
                " self._put_off or first - hashing.next > MAX_LAG) and first - hashing.next <= FAR",
                "(hashing in self._advancing and (hashing in self._put_off or"
                " first - hashing.next > MAX_LAG) and (first - hashing.next <= FAR))",
            )
        ],
    },
    "reading/hash_objects": {
        _SAME: [  # a hash has 32 bytes, and a chunk is a multiple of them
            (
                "for number in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):",
                "for number in range(start // CHUNK_BYTES, (end - 2) // CHUNK_BYTES + 1):",
            )
        ],
        _SLOWER: [("if not number and not is_known:", "if (not number):")],  # compared once more
        _MOMENT: [("if len(self._good) > MAX_KNOWN:", "if len(self._good) >= MAX_KNOWN:")],
    },
    "reading/hash_pages": {
        _RACE: [
            (
                "is_wanted = self._in_memory(key) is None and not ("
                " self._is_noted_locked(key) or self._is_noted_locked(content.dataset.uri) )",
                "is_wanted = (not (self._is_noted_locked(key) or"
                " self._is_noted_locked(content.dataset.uri)))",
            )
        ],
        _SAME: [  # the page of both blocks is the same, and so is the item of each page
            ("self.request(content, 0)", "self.request(content, 1)"),
            (
                "return self.obtain(content, 0) is not None",
                "return self.obtain(content, 1) is not None",
            ),
            (
                "for key in (_of_item(content, 0), _of_content(content, 0)):",
                "for key in (_of_item(content, 1), _of_content(content, 0)):",
            ),
            (
                "for key in (_of_item(content, 0), _of_content(content, 0)):",
                "for key in (_of_item(content, 0), _of_content(content, 1)):",
            ),
        ],
        _MOMENT: [
            (
                "if len(self._not_before_s) > MAX_NOTED:",
                "if len(self._not_before_s) >= MAX_NOTED:",
            ),
            (
                "while self._bytes > MAX_MEMORY_BYTES and len(self._pages) > 1:",
                "while self._bytes >= MAX_MEMORY_BYTES and len(self._pages) > 1:",
            ),
        ],
    },
    "writing/staging/dataset": {
        _SAME: [
            ("self._changes = 0", "self._changes = 1"),
            ("self._changes += 1", "self._changes -= 1"),
            ("self._changes += 1", "self._changes += 2"),
        ],
        _MOMENT: [
            (
                "content = file.read(MAX_STATE_BYTES + 1)",
                "content = file.read(MAX_STATE_BYTES + 2)",
            ),
            (
                "if len(content) > max(status.st_blocks * 512, status.st_size):",
                "if len(content) >= max(status.st_blocks * 512, status.st_size):",
            ),
            (
                "if len(content) > max(status.st_blocks * 512, status.st_size):",
                "if len(content) > max(status.st_blocks * 513, status.st_size):",
            ),
        ],
    },
    "writing/staging/file_hashes": {
        _SAME: [  # what is closed keeps nothing either
            ("self._connection = None", "pass"),
        ],
        _SLOWER: [
            ("other.result()", "pass"),
            ('connection.execute("PRAGMA journal_mode = WAL")', "pass"),
            ('connection.execute("PRAGMA synchronous = NORMAL")', "pass"),
            ("THREADS = min(8, os.cpu_count() or 1)", "THREADS = max(8, os.cpu_count() or 1)"),
            ("THREADS = min(8, os.cpu_count() or 1)", "THREADS = min(8, (1))"),
            ("THREADS = min(8, os.cpu_count() or 1)", "THREADS = min(8, (os.cpu_count()))"),
            *_each(
                "os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)",
                "pass",
                "os.posix_fadvise(descriptor, 1, 0, os.POSIX_FADV_SEQUENTIAL)",
                "os.posix_fadvise(descriptor, 0, 1, os.POSIX_FADV_SEQUENTIAL)",
            ),
        ],
    },
    "writing/staging/sealing": {
        _TYPES: [
            (
                "if found.admin_metadata is None or found.manifest is None:",
                "if (found.manifest is None):",
            ),
            (
                "if found.admin_metadata is None or found.manifest is None:",
                "if (found.admin_metadata is None):",
            ),
        ],
        _SLOWER: [
            (
                'pool = ThreadPoolExecutor(1, thread_name_prefix="sync")',
                'pool = ThreadPoolExecutor(2, thread_name_prefix="sync")',
            ),
            ("pool.shutdown(wait=False)", "pass"),
            ("pool.shutdown(wait=False)", "pool.shutdown(wait=True)"),
        ],
    },
    "writing/staging/area": {
        _SAME: [("del self._known[path]", "pass")],
    },
    "writing/upload/put_retry": {
        _MOMENT: [
            (
                "while left > 0 and not self._broken.is_set():",
                "while left >= 0 and not self._broken.is_set():",
            )
        ],
    },
    "writing/freeze_schedule": {
        _TYPES: [
            (
                "if self._delay_s is None or not self.is_armed(staged):",
                "if (not self.is_armed(staged)):",
            )
        ],
        _SAME: [  # equal, "4 times its longest pause so far" is said as well
            (
                "is_longer = PAUSES * staged.longest_pause_s > self._delay_s",
                "is_longer = PAUSES * staged.longest_pause_s >= self._delay_s",
            )
        ],
    },
    "writing/freezer": {
        _SLOWER: [  # its thread looks sooner, or later, once more
            *_each(
                "self._condition.wait(min(wait_s or LOOK_AGAIN_S, LOOK_AGAIN_S))",
                "pass",
                "self._condition.wait(max(wait_s or LOOK_AGAIN_S, LOOK_AGAIN_S))",
                "self._condition.wait(min((LOOK_AGAIN_S), LOOK_AGAIN_S))",
            ),
            ("if not self._freeze_all(due):", "if (self._freeze_all(due)):"),
            ("begun = False", "begun = True"),
            ("begun = True", "begun = False"),
        ],
        _SAME: [  # each job is told to stop as well, and ends as soon as it begins
            ("self._pool.shutdown(wait=False, cancel_futures=True)", "pass"),
            (
                "self._pool.shutdown(wait=False, cancel_futures=True)",
                "self._pool.shutdown(wait=False, cancel_futures=False)",
            ),
        ],
    },
    "writing/freeze_job": {
        _MOMENT: [("if time.monotonic() > end_s:", "if time.monotonic() >= end_s:")],
        _SLOWER: [
            ("self.stop.wait(0.02)", "pass"),
            (
                'with ThreadPoolExecutor(1, thread_name_prefix="seal") as pool:',
                'with ThreadPoolExecutor(2, thread_name_prefix="seal") as pool:',
            ),
        ],
        _SAME: [
            (
                "on_taken=lambda item: taken.__setitem__(item.identifier, True),",
                "on_taken=lambda item: taken.__setitem__(item.identifier, False),",
            )
        ],
    },
}


def explained(path: Path) -> set[tuple[str, str]]:
    """Return the mutants of a module that are left out: old lines, and new ones."""
    name = str(path.with_suffix("")).removeprefix("dserverfs/")
    return {pair for pairs in EXPLAINED.get(name, {}).values() for pair in pairs}
