"""The rule of `--verify`: what has to be compared before bytes of an item are handed out.

Used by open items, which ask before each answer. A reader that must not go on before the
end of an item has the missing blocks fetched and all of them compared. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from dserverfs.base import pools
from dserverfs.base.errors import DserverfsError, IntegrityError
from dserverfs.base.hashes import Policy
from dserverfs.base.items import BLOCK_SIZE, ItemContent, Run
from dserverfs.base.retry import Deadline
from dserverfs.reading.block_filling import BlockFiller, BlockParts, reading_is_over
from dserverfs.reading.cache.blocks import Block, DamagedBlock
from dserverfs.reading.cache_lookup import mismatch
from dserverfs.reading.item_hashes import Verdict
from dserverfs.reading.read_ahead import ReadAhead

logger = logging.getLogger(__name__)

COMPARE_THREADS = 4
COMPARE_TIMEOUT_S = 120.0
# Items of which the log said that they are too large for `strict`; then they are forgotten,
# and may be named once more. 300 bytes each.
MAX_NAMED_LARGE = 10_000


class Verification:
    """Compares items as the policy wants it."""

    def __init__(self, parts: BlockParts, filler: BlockFiller, *, max_named_large: int) -> None:
        self._parts = parts
        self._hashes = parts.hashes
        self._filler = filler
        self._policy = parts.hashes.policy
        self._max_named_large = max_named_large
        self._lock = threading.Lock()
        self._named_large: set[str] = set()
        self._comparing: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(COMPARE_THREADS, thread_name_prefix="compare")

    def verification_pending(self, content: ItemContent, *, whole: bool) -> Future[None] | None:
        """Return a future to await before serving this item, or None.

        `whole` says that the caller has all other bytes. Raises IntegrityError if the
        policy forbids to serve what cannot be compared.
        """
        if self._policy is Policy.OFF or content.number_of_blocks == 0:
            return None
        if self._is_compared_by_block(content):
            return None
        if self._hashes.is_strict_with(content):
            if not self._hashes.can_hash(content):
                raise IntegrityError(
                    f"{content.label} cannot be compared by its"
                    f" {content.hash_function}, and --verify strict hands out nothing else"
                )
            # An item of one block was compared when it came.
            is_right = content.number_of_blocks == 1 or self._hashes.is_verified(content)
            return None if is_right else self._compared(content)
        if self._policy is Policy.STRICT:
            self._name_large(content)
        if not whole or not self._hashes.is_unverified(content):
            return None
        return self._compared(content) if self._hashes.can_hash(content) else None

    def needs_no_verification(self, content: ItemContent, *, whole: bool) -> bool:
        """Return True if `verification_pending` is certain to return None; cheap."""
        if self._policy is Policy.STRICT:
            return self._is_compared_by_block(content)
        return not whole or self._policy is Policy.OFF or not self._hashes.is_unverified(content)

    def _is_compared_by_block(self, content: ItemContent) -> bool:
        """Return True if each block of it that was handed out had been compared with its hash."""
        return self._parts.hashing.has_hashes(content) and not self._hashes.is_marked_unverified(
            content
        )

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._parts.hashing.close()

    def _name_large(self, content: ItemContent) -> None:
        with self._lock:
            if content.key in self._named_large:
                return
            if len(self._named_large) >= self._max_named_large:
                self._named_large.clear()
            self._named_large.add(content.key)
        logger.info(
            "%s is larger than %d MiB: parts of it are handed out uncompared",
            content.label,
            self._hashes.strict_limit_in_bytes // 1024**2,
        )

    def _compared(self, content: ItemContent) -> Future[None]:
        """Return a future that is done when the item was compared.

        It fails if the item is wrong or cannot be had, and is done at once if the item is
        verified. One comparison at a time serves all who ask.
        """
        with self._lock:
            if self._hashes.is_verified(content):
                done: Future[None] = Future()
                done.set_result(None)
                return done
            future = self._comparing.get(content.key)
            if future is not None:
                return future
            future = self._comparing[content.key] = Future()
        pools.submit(
            self._pool,
            lambda: self._compare(content, future),
            dropped=lambda: self._settle(content, future, reading_is_over()),
        )
        return future

    def _compare(self, content: ItemContent, future: Future[None]) -> None:
        failure: BaseException | None = None
        try:
            failure = self._compare_now(content, Deadline(COMPARE_TIMEOUT_S))
        except DserverfsError as error:
            failure = error
        except Exception as error:
            logger.exception("%s: a fault of ours while comparing", content.dataset.uri)
            failure = error
        self._settle(content, future, failure)

    def _settle(
        self, content: ItemContent, future: Future[None], failure: BaseException | None
    ) -> None:
        with self._lock:
            del self._comparing[content.key]
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)

    def _compare_now(self, content: ItemContent, deadline: Deadline) -> BaseException | None:
        """Return None if the item is right, else its readers' error; blocks. Raises as `obtain`."""
        is_unverified = self._hashes.is_unverified(content)
        if not is_unverified and self._parts.cached.has_all_verified(content):
            self._hashes.mark_verified(content)
            return None
        fetched: tuple[int, Block] | None = None
        ahead = ReadAhead()
        while True:
            deadline.remaining_s()
            hashing = self._hashes.begin_hashing(content)
            if hashing is None or self._hashes.is_verified(content):
                return None
            is_damaged = False
            with hashing.lock:
                index = hashing.next
                if index < content.number_of_blocks:
                    block = fetched[1] if fetched and fetched[0] == index else None
                    fetched = None
                    if block is None:
                        block = self._parts.flight.find(content, index)
                    try:
                        if block is not None:
                            hashing.feed(block, content)
                            continue
                    except DamagedBlock:
                        is_damaged = True
            if index >= content.number_of_blocks:
                if self._parts.hashing.conclude(content, hashing) is not Verdict.CORRUPT:
                    return None
                self._parts.drops.drop(content)
                return mismatch(content)
            if is_damaged:  # else it is found, and asked for, again and again
                self._parts.drops.drop_damaged(content, Run(index, 1))
            run = ahead.plan(index * BLOCK_SIZE, BLOCK_SIZE, content.number_of_blocks)
            if run.length:
                self._filler.request_ahead(content, run)
            fetched = index, self._filler.obtain(content, index, deadline)
