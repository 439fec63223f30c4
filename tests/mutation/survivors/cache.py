"""The survivors of reading/cache/, by module and reason."""

from __future__ import annotations

from tests.mutation.survivors.reasons import MOMENT, RACE, SAME, SLOWER, TYPES, Explained, each

EXPLAINED: Explained = {
    "reading/cache/block_cache": {
        SAME: [
            ("OTHERS_CLOSE_S = 3 * WATCH_S", "OTHERS_CLOSE_S = (3 // WATCH_S)"),
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
            *each(
                "return freed > 0 or self._watch.is_recent()",
                "return (self._watch.is_recent())",
                "return freed > 1 or self._watch.is_recent()",
            ),
            (  # a connection of a thread ends with it
                "table.close() # this thread's connection",
                "pass # this thread's connection",
            ),
        ],
        SLOWER: [
            (  # the row of a small one is written twice
                "distinct = {key: block for key, block in blocks if len(block.data)"
                " >= MIN_FILE_SIZE}",
                "distinct = {key: block for key, block in blocks}",
            ),
            *each(  # the lock is waited for, and then it is seen
                "if self._is_open and (self._must_reopen or self._table is None):",
                "if (self._is_open):",
                "if (self._must_reopen or self._table is None):",
            ),
            ("if table is None or not wanted:", "if (table is None):"),
            ("if table is None or not used:", "if (table is None):"),
            ("time.sleep(0.02)", "pass"),
            *each(  # a row that the one of its file replaces at once
                "small = [(k.as_text(), block) for k, block in blocks if len(block.data)"
                " < MIN_FILE_SIZE]",
                "small = [(k.as_text(), block) for k, block in blocks]",
                "small = [(k.as_text(), block) for k, block in blocks if len(block.data)"
                " <= MIN_FILE_SIZE]",
            ),
            ("if due or excess > 0:", "if due or excess >= 0:"),  # it evicts nothing then
            ("if excess > 0:", "if excess >= 0:"),
        ],
        MOMENT: [
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
        RACE: [  # another thread has opened it anew, closed it, or said that it is full
            *each(
                "if not self._is_open or (self._table is not None and not self._must_reopen):",
                "if (self._table is not None and (not self._must_reopen)):",
                "if (not self._is_open):",
            ),
        ],
        TYPES: [
            (
                "stored = { key: self._blocks.stored(block, value.file, row) for (key, block),"
                " value, row in zip(large, values, rows, strict=True) if value.file is not None }",
                "stored = {key: self._blocks.stored(block, value.file, row) for (key, block),"
                " value, row in zip(large, values, rows, strict=True)}",
            ),
        ],
    },
    "reading/cache/block_table": {
        SLOWER: [
            *each(  # diskcache looks itself whether there is room
                "if self.excess_in_bytes() < 0:",
                "if self.excess_in_bytes() <= 0:",
                "if self.excess_in_bytes() < 1:",
            ),
            ("break", "pass"),
            ('self._sql(f"PRAGMA busy_timeout = {_LOG_TIMEOUT_S * 1000:.0f}")', "pass"),
            (  # what is farther off has another name
                'return {"row": row, "most": MAX_BLOCKS_IN_FILE - 1, "stem": STEM_CHARACTERS}',
                'return {"row": row, "most": (MAX_BLOCKS_IN_FILE + 1), "stem": STEM_CHARACTERS}',
            ),
        ],
        MOMENT: [
            *each(
                "if size > self._log_limit or (size > MAX_LOG_BYTES and self._may_retry()):",
                "if size >= self._log_limit or (size > MAX_LOG_BYTES and self._may_retry()):",
                "if size > self._log_limit or (size >= MAX_LOG_BYTES and self._may_retry()):",
            ),
            ("if time.monotonic() > end_s:", "if time.monotonic() >= end_s:"),
        ],
    },
    "reading/cache/write_behind": {
        SLOWER: [("block.compute_checksums()", "pass")],  # they are made when they are needed
    },
    "reading/cache/block_files": {
        RACE: [
            (
                "flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC",
                "flags = (os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC",
            ),
            (
                "os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)",
                "os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=False)",
            ),
        ],
        SAME: [
            (
                "StoredFile(name, file, start) for name, start"
                " in zip(names, starts[:-1], strict=True)",
                "StoredFile(name, file, start) for name, start"
                " in zip(names, starts[:-1], strict=False)",
            ),
        ],
    },
    "reading/cache/blocks": {
        SAME: [  # a random number of 63 bits is never 0; 62 of them are as good
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
        TYPES: [("Block = MemoryBlock | FileBlock", "Block = (MemoryBlock)")],
    },
    "reading/cache/eviction": {
        SLOWER: [  # the files of a row that went with another one give back nothing more
            (
                "if freed < size_in_bytes and row not in evicted:",
                "if (freed < size_in_bytes):",
            )
        ],
        MOMENT: [
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
}
