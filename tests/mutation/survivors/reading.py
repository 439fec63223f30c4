"""The survivors of reading/, but for the cache, by module and reason."""

from __future__ import annotations

from tests.mutation.survivors.reasons import MOMENT, RACE, SAME, SLOWER, TYPES, Explained

EXPLAINED: Explained = {
    "reading/verification": {
        TYPES: [
            (
                "if hashing is None or self._hashes.is_verified(content):",
                "if (self._hashes.is_verified(content)):",
            ),
        ],
        RACE: [
            (
                "if hashing is None or self._hashes.is_verified(content):",
                "if (hashing is None):",
            ),
            (
                "block = fetched[1] if fetched and fetched[0] == index else None",
                "block = fetched[1] if (fetched) else None",
            ),
        ],
        SLOWER: [
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
    "reading/block_filling": {
        SAME: [
            (  # it is looked at before it is asked for
                "self._knew_hashes = False # when the cache was asked",
                "self._knew_hashes = True # when the cache was asked",
            ),
            (
                "for missing, cached in zip(list(self._waiting), found, strict=True):",
                "for missing, cached in zip(list(self._waiting), found, strict=False):",
            ),
        ],
        SLOWER: [
            # Who waits for the block looks once a second whether it is coming still.
            ("self._parts.hashes.give_up(self._content)", "pass"),
            # The cache is asked in vain.
            (
                "self._knew_hashes = self._parts.hashing.has_hashes(self._content)",
                "pass",
            ),
            ("if self._knew_hashes or not self._waiting:", "if (not self._waiting):"),
            (
                "if stored_as.names_content and self._finds_by_hashes():",
                "if (self._finds_by_hashes()):",
            ),
        ],
        RACE: [("raise StaleResponse", "pass")],  # and then it is raised when it is settled
    },
    "reading/block_hashing": {
        SAME: [
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
        TYPES: [
            (
                "hashing is not None and hashing in self._advancing and (hashing in"
                " self._put_off or first - hashing.next > MAX_LAG) and first - hashing.next <= FAR",
                "(hashing in self._advancing and (hashing in self._put_off or"
                " first - hashing.next > MAX_LAG) and (first - hashing.next <= FAR))",
            )
        ],
    },
    "reading/hash_objects": {
        SAME: [  # a hash has 32 bytes, and a chunk is a multiple of them
            (
                "for number in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):",
                "for number in range(start // CHUNK_BYTES, (end - 2) // CHUNK_BYTES + 1):",
            )
        ],
        SLOWER: [("if not number and not is_known:", "if (not number):")],  # compared once more
        MOMENT: [("if len(self._good) > MAX_KNOWN:", "if len(self._good) >= MAX_KNOWN:")],
    },
    "reading/hash_pages": {
        RACE: [
            (
                "is_wanted = self._in_memory(key) is None and not ("
                " self._is_noted_locked(key) or self._is_noted_locked(content.dataset.uri) )",
                "is_wanted = (not (self._is_noted_locked(key) or"
                " self._is_noted_locked(content.dataset.uri)))",
            )
        ],
        SAME: [  # the page of both blocks is the same, and so is the item of each page
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
        MOMENT: [
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
}
