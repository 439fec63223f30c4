"""What a channel pushes after one daemon has taken the place of another: nothing that is open.

An item is open for the kernel whichever daemon has opened it, and closed once, though its RELEASE
waited.
"""

from __future__ import annotations

import os

import pytest

from dserverfs.mount.channel import rows, wire
from dserverfs.mount.channel.frozen import FIRST_HANDLE
from dserverfs.mount.channel.rows import Extent
from dserverfs.mount.channel.wire import Opcode
from dserverfs.mount.replies import Ownership
from dserverfs.mount.replies import packed as packed_row
from dserverfs.tree.attributes import FROZEN_S, Attributes, Entry
from tests.mount.test_channel_orphaned import ask, follow, orphans
from tests.support.channel_bench import Bench

BASE, ROW = 3 << 36, 1
ITEM = BASE + ROW
CONTENT = b"content" * 100
OPEN = wire.OPEN.pack(os.O_RDONLY, 0)
HANDLES = (5, 6)


def tell(bench: Bench) -> None:
    """Tell the dataset, and the item's content."""
    entries = []
    for row, size in ((0, 0), (ROW, len(CONTENT))):
        attributes = Attributes(BASE + row, row == 0, 0o644, size, 10**18, FROZEN_S)
        entries.append(packed_row(Entry(f"{row}", attributes, row), Ownership(1000, 100, 0o027)))
    bench.tell_dataset(BASE)
    bench.tell_rows(BASE, 0, rows.packed(0, entries, {0: Extent(1, 1)}, []))
    bench.tell_contents(BASE, [(ROW, CONTENT)])


def is_pushed(bench: Bench, unique: int) -> bool:
    """Open the item, which the channel answers; return whether its content was pushed before."""
    bench.kernel.send(ask(Opcode.OPEN, ITEM, OPEN, unique))
    pushed = False
    while True:
        message = bench.next(bench.kernel).message
        _, number, of = wire.REPLY.unpack_from(message)
        if of:
            assert (of, number) == (unique, 0)
            return pushed
        assert message.endswith(CONTENT)
        pushed = True


def release(handle: int, unique: int) -> bytes:
    return ask(Opcode.RELEASE, ITEM, wire.RELEASE.pack(handle) + bytes(16), unique)


@pytest.mark.parametrize("is_closed_meanwhile", [True, False])
def test_item_that_the_dead_daemon_opened_is_open_until_it_is_closed(
    is_closed_meanwhile: bool,
) -> None:
    with orphans() as (bench, known):
        for unique, handle in zip((10, 12), HANDLES, strict=True):
            request = ask(Opcode.OPEN, ITEM, OPEN, unique)
            assert bench.outcome(request).passed == request
            reply = wire.reply(unique, 0, wire.OPENED.size) + wire.OPENED.pack(handle, 0, 0)
            bench.ours.libfuse.send(reply)
            assert bench.next(bench.kernel).message == reply
        bench.die()
        heir = known.next()
        closing = release(HANDLES[0], 14)
        if is_closed_meanwhile:
            bench.kernel.send(closing)
        follow(bench, heir)
        if not is_closed_meanwhile:
            bench.kernel.send(closing)
        assert bench.next(bench.ours.libfuse).message == closing
        tell(bench)

        assert not is_pushed(bench, 16), "the other one is open"

        bench.kernel.send(release(HANDLES[1], 18))
        assert bench.next(bench.ours.libfuse).message == release(HANDLES[1], 18)
        bench.kernel.send(release(FIRST_HANDLE + 1, 20))
        assert bench.next(bench.kernel).answer is not None
        tell(bench)
        assert is_pushed(bench, 22)


def test_open_that_waited_counts_once() -> None:
    with orphans() as (bench, known):
        bench.die()
        heir = known.next()
        request = ask(Opcode.OPEN, ITEM, OPEN, 10)
        bench.kernel.send(request)
        follow(bench, heir)
        assert bench.next(bench.ours.libfuse).message == request
        reply = wire.reply(10, 0, wire.OPENED.size) + wire.OPENED.pack(7, 0, 0)
        bench.ours.libfuse.send(reply)
        assert bench.next(bench.kernel).message == reply
        bench.kernel.send(release(7, 12))
        assert bench.next(bench.ours.libfuse).message == release(7, 12)
        tell(bench)

        assert is_pushed(bench, 14)
