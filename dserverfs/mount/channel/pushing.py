"""Pushing contents of small items into the kernel's page cache, so that it asks for no READ.

The rule: a content goes to the kernel when the channel answers an OPEN of its item, before the
answer, if nothing has the item open. A READ that is under way locks its pages, and the notice
would wait for them; who should answer it may be this thread. But the kernel keeps a handle open
until each of its READs is answered, and says when it is closed. So nothing has to be waited for,
nobody is given what may not be opened, and no page is made that nobody asked for. It has to be
known of all handles: there was none when the connection began.

Of a directory that is read in order, by READs of the first bytes, the contents of the next items
are asked for ahead. OPENs of these carry on with that, for no READ comes any more; OPENs alone
never begin it, for the kernel may have all the pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from dserverfs.mount.channel import wire
from dserverfs.mount.channel.contents import Contents
from dserverfs.mount.channel.frozen import Frozen
from dserverfs.mount.channel.rows import ROW_MASK
from dserverfs.reading.item_order import ItemOrder, Stretch

MAX_OPEN = 100_000  # inodes that are open, of which it is known; with more nothing is pushed


class Pushing:
    """Pushes what was told, and asks for what comes next."""

    def __init__(
        self,
        frozen: Frozen,
        write: Callable[[bytes, memoryview], None],
        ask: Callable[[int, Stretch], None],
    ) -> None:
        """`write` gives the kernel a notice, `ask` has the daemon tell contents of a dataset."""
        self._frozen = frozen
        self._write = write
        self._ask = ask
        self._contents = Contents()
        self._order = ItemOrder()
        self._open: Counter[int] = Counter()  # how often, by inode
        self._asked: dict[int, int] = {}  # inodes that libfuse is to open, by the request
        self._knows_all = False
        self.small_bytes = 0  # items of so many and more are not pushed
        self.pushed = self.pushed_bytes = 0

    # What is open

    def begin(self) -> None:
        """Note that the connection begins, and nothing is open."""
        self._knows_all = True

    def asked(self, unique: int, inode: int) -> None:
        """Note that libfuse is to answer an OPEN; once more, if it waited meanwhile."""
        if unique not in self._asked:
            self._asked[unique] = inode
            self._opened(inode)

    def answered(self, unique: int, reply: memoryview) -> None:
        """Note a reply of libfuse to a request; 0: it is a notice."""
        if unique in self._asked:
            _, error, _ = wire.REPLY.unpack_from(reply)
            if error:
                self.failed(unique)
            else:
                del self._asked[unique]

    def failed(self, unique: int) -> None:
        """Note that a request has failed."""
        inode = self._asked.pop(unique, None)
        if inode is not None:
            self.released(inode)

    def released(self, inode: int) -> None:
        """Note that a handle is closed."""
        self._open[inode] -= 1
        if self._open[inode] <= 0:
            del self._open[inode]

    def _opened(self, inode: int) -> None:
        self._open[inode] += 1
        if len(self._open) > MAX_OPEN:
            self._knows_all = False

    # What is read

    def read(self, inode: int) -> None:
        """Note that the daemon is to read an item's first bytes."""
        row = inode & ROW_MASK
        if (
            self._knows_all
            and self._frozen.opens
            and self._frozen.is_told(inode - row)
            and self._is_small(self._frozen.size(inode))
        ):
            self._go_on(inode - row, self._order.read(inode - row, row))

    def opened(self, unique: int, inode: int) -> None:
        """Push an item's content, and note that it is open: it is about to be answered so."""
        self.failed(unique)  # libfuse need not answer it after all
        row = inode & ROW_MASK
        base = inode - row
        size = self._frozen.size(inode)
        is_small = self._is_small(size)
        content = self._contents.take(base, row) if is_small else None
        if (
            content is not None
            and self._knows_all
            and not self._open[inode]
            and size == len(content)  # or the kernel would make it longer
        ):
            self._write(wire.store(inode, len(content)), content)
            self.pushed += 1
            self.pushed_bytes += len(content)
        self._opened(inode)
        if is_small:
            self._go_on(base, self._order.goes_on(base, row))

    def _is_small(self, size: int | None) -> bool:
        """Return whether contents of that size are pushed; None is of a row that is not told."""
        return size is not None and 0 < size < self.small_bytes

    def _go_on(self, base: int, stretch: Stretch | None) -> None:
        if stretch is not None:
            self._ask(base, stretch)

    # What the daemon tells

    def told(self, base: int, stretch: Stretch, covered: int, pack: bytes) -> None:
        """Take what was asked for: the contents of `covered` rows; empty if there are none."""
        if covered < stretch.length:
            self._order.limit(base, stretch, covered)
        if pack and self._frozen.is_told(base):
            self._contents.tell(base, pack)

    def forget(self, inode: int) -> None:
        """Push no content of an inode that was told before."""
        row = inode & ROW_MASK
        self._contents.take(inode - row, row)

    def take_back(self, base: int) -> None:
        """Push nothing of a dataset that was told before."""
        self._contents.take_back(base)
        self._order.forget(base)

    def clear(self) -> None:
        """Push nothing that was told before; what is open is open still."""
        self._contents = Contents()
        self._order = ItemOrder()
