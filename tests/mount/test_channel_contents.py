"""What a channel pushes into the page cache: contents that were told, when their items are opened.

Never of what may be read just then: the notice would wait for an answer of the same thread.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.mount.channel import contents, messages, pushing, rows, wire
from dserverfs.mount.channel.contents import Contents, packed
from dserverfs.mount.channel.frozen import FIRST_HANDLE
from dserverfs.mount.channel.messages import Kind
from dserverfs.mount.channel.rows import Extent
from dserverfs.mount.channel.wire import Opcode
from dserverfs.mount.replies import Ownership
from dserverfs.mount.replies import packed as packed_row
from dserverfs.reading.item_order import FIRST_WINDOW, Stretch
from dserverfs.tree.attributes import FROZEN_S, Attributes, Entry
from tests.support.channel_bench import Bench, answer_in, running

BASES = (3 << 36, 4 << 36)
NUMBER = 300  # of rows; the first is their directory
OWNER = Ownership(1000, 100, 0o027)
FAR = FIRST_WINDOW + 50  # rows that no reader of those before is near to


def size_of(row: int) -> int:
    return row * 31 % 9000


def content_of(row: int, version: int = 0) -> bytes:
    return random.Random(f"{row} {version}").randbytes(size_of(row))


def piece(base: int) -> bytes:
    entries = []
    for row in range(NUMBER):
        size = size_of(row) if row else 0
        attributes = Attributes(base + row, row == 0, 0o644, size, 10**18, FROZEN_S)
        entries.append(packed_row(Entry(f"{row:05}", attributes, row), OWNER))
    return rows.packed(0, entries, {0: Extent(1, NUMBER - 1)}, [])


PIECES = {base: piece(base) for base in BASES}


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        made.begin()
        tell_rows(made)
        yield made


def tell_rows(bench: Bench) -> None:
    """Tell both datasets; it is in force."""
    for base in BASES:
        bench.tell_dataset(base)
        bench.tell_rows(base, 0, PIECES[base])


def answered(bench: Bench, opcode: int, inode: int, body: bytes) -> bytes | None:
    """Ask; return what was pushed before the answer, if anything; None if it was passed on."""
    unique, request = bench.ask(opcode, inode, body)
    pushed = None
    while True:
        message = bench.next(bench.kernel, bench.ours.libfuse)
        if message.passed is not None:
            assert (message.passed, pushed) == (request, None)
            return None
        length, number, of = wire.REPLY.unpack_from(message.message)
        assert length == len(message.message)
        if of:
            assert (of, number) == (unique, 0)
            return pushed
        assert (number, pushed) == (wire.Notice.STORE, None)
        about, offset, size, _ = wire.STORE.unpack_from(message.message, wire.REPLY.size)
        pushed = message.message[wire.REPLY.size + wire.STORE.size :]
        assert (about, offset, size) == (inode, 0, len(pushed))


def opens(bench: Bench, inode: int) -> bytes | None:
    return answered(bench, Opcode.OPEN, inode, wire.OPEN.pack(os.O_RDONLY, 0))


def asked(bench: Bench) -> list[Stretch]:
    """Return what contents were asked for, all of the first dataset."""
    found = [message for message in bench.told() if len(message) == messages.CONTENTS.size]
    each = [messages.CONTENTS.unpack(message) for message in found]
    assert {(kind, base) for kind, _, base, *_ in each} <= {(Kind.WANTED_CONTENTS, BASES[0])}
    return [Stretch(first, length, bool(last)) for *_, first, length, last in each]


def reads(bench: Bench, inode: int) -> list[Stretch]:
    """Read the first bytes, which the daemon has to; return what contents are asked for then."""
    bench.ask(Opcode.READ, inode, wire.READ.pack(1, 0, 4096, 0, 0, 0, 0))
    answered(bench, Opcode.GETATTR, BASES[0] + 1, bytes(16))
    return asked(bench)


def releases(bench: Bench, inode: int, handle: int) -> None:
    """Close; the channel answers or passes on."""
    bench.ask(Opcode.RELEASE, inode, wire.RELEASE.pack(handle) + bytes(16))
    bench.next(bench.kernel, bench.ours.libfuse)


def passes_open(bench: Bench, inode: int, error: int) -> None:
    """Have libfuse open what the channel may not, with or without success."""
    unique, request = bench.ask(Opcode.OPEN, inode, wire.OPEN.pack(os.O_RDWR, 0))
    assert bench.next().passed == request
    bench.ours.libfuse.send(wire.reply(unique, error, 0 if error else 16) + bytes(16 * (not error)))
    assert answer_in(bench.next().message).errno == error


INODES = st.tuples(st.sampled_from(BASES), st.integers(1, 2)).map(sum)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["tell", "open", "open", "open", "close", "forget", "open elsewhere"]),
        INODES,
    )
    | st.tuples(st.sampled_from(["take back"]), st.sampled_from(BASES)),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_what_is_pushed_was_told_last_and_is_of_an_item_that_nothing_has_open(
    steps: list[tuple[str, int]],
) -> None:
    told: dict[int, bytes] = {}
    is_open, elsewhere = Counter[int](), Counter[int]()
    listed = {*BASES}
    with running() as bench:
        bench.begin()
        tell_rows(bench)
        for version, (step, inode) in enumerate(steps):
            base, row = inode & ~rows.ROW_MASK, inode & rows.ROW_MASK
            if step == "tell":
                content = content_of(row, version)
                bench.tell_contents(base, [(row, content)])
                if base in listed:
                    told[inode] = content
            elif step == "open":
                pushed = opens(bench, inode)
                if base not in listed:
                    assert pushed is None
                    unpassed = wire.reply(bench.unique, errno.EACCES)
                    bench.ours.libfuse.send(unpassed)
                    assert bench.next().message == unpassed
                    continue
                may = told.pop(inode, None)
                assert pushed == (None if is_open[inode] or elsewhere[inode] else may)
                is_open[inode] += 1
            elif step == "open elsewhere":
                passes_open(bench, inode, errno.EROFS if row % 2 else 0)
                elsewhere[inode] += not row % 2
            elif step == "close" and is_open[inode]:
                is_open[inode] -= 1
                releases(bench, inode, FIRST_HANDLE + 1)
            elif step == "close" and elsewhere[inode]:
                elsewhere[inode] -= 1
                releases(bench, inode, 7)
            elif step == "forget":
                bench.forget(inode)
                told.pop(inode, None)
            elif step == "take back":
                bench.take_back(base)
                listed.discard(base)
                told = {each: data for each, data in told.items() if each & ~rows.ROW_MASK != base}


def tell(bench: Bench, row: int) -> bytes:
    """Tell what a row of the first dataset holds; return it."""
    content = content_of(row)
    bench.tell_contents(BASES[0], [(row, content)])
    return content


def test_nothing_is_pushed_of_what_is_open(bench: Bench) -> None:
    """A READ of it may be under way."""
    inode = BASES[0] + 3
    for _ in range(2):
        content = tell(bench, 3)
        assert opens(bench, inode) == content
        tell(bench, 3)
        assert opens(bench, inode) is None
        releases(bench, inode, FIRST_HANDLE + 1)
        tell(bench, 3)
        assert opens(bench, inode) is None
        releases(bench, inode, FIRST_HANDLE + 1)
        releases(bench, inode, FIRST_HANDLE + 1)


def test_nothing_is_pushed_of_what_libfuse_has_open(bench: Bench) -> None:
    inode = BASES[0] + 3
    passes_open(bench, inode, 0)
    tell(bench, 3)
    assert opens(bench, inode) is None
    releases(bench, inode, FIRST_HANDLE + 1)

    releases(bench, inode, 7)
    passes_open(bench, inode, errno.EROFS)  # there is no handle of it
    content = tell(bench, 3)
    assert opens(bench, inode) == content


def test_content_that_was_forgotten_is_not_pushed(bench: Bench) -> None:
    tell(bench, 3)
    content = tell(bench, 4)
    bench.forget(BASES[0] + 3)

    assert opens(bench, BASES[0] + 3) is None
    assert opens(bench, BASES[0] + 4) == content


def test_nothing_is_pushed_that_was_told_before_its_dataset_was_taken_back_or_until_it_is_told(
    bench: Bench,
) -> None:
    tell(bench, 3)
    bench.take_back(BASES[0])
    tell(bench, 4)
    tell_rows(bench)

    assert [opens(bench, BASES[0] + row) for row in (3, 4)] == [None, None]
    content = tell(bench, 5)
    assert opens(bench, BASES[0] + 5) == content


def test_nothing_is_pushed_unless_the_beginning_was_seen() -> None:
    """What was open before is not known then."""
    base = BASES[0]
    with running() as bench:
        tell_rows(bench)
        bench.tell_contents(base, [(1, content_of(1))])

        assert opens(bench, base + 1) is None
        assert bench.shared.counts.pushed == 0


def test_nothing_is_pushed_any_more_when_too_much_is_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MAX_OPEN", 2)
    base = BASES[0]
    bench.tell_contents(base, [(row, content_of(row)) for row in range(1, 6)])

    assert [opens(bench, base + row) is not None for row in range(1, 6)] == [
        *(True, True, True),
        *(False, False),
    ]


def test_content_of_another_length_is_not_pushed(bench: Bench) -> None:
    """The kernel would take it for the item's size."""
    base = BASES[0]
    for data in (content_of(5) + b"x", content_of(5)[:-1]):
        bench.tell_contents(base, [(5, data)])
        assert opens(bench, base + 5) is None
        releases(bench, base + 5, FIRST_HANDLE + 1)


def test_pushed_contents_are_counted(bench: Bench) -> None:
    base = BASES[0]
    bench.tell_contents(base, [(row, content_of(row)) for row in range(1, 9)])
    for row in range(1, 9):
        assert opens(bench, base + row) == content_of(row)
    bench.forget(0)  # the last answer is counted when the kernel has it

    assert bench.shared.counts.pushed == 8
    assert bench.shared.counts.pushed_bytes == sum(map(size_of, range(1, 9)))


def test_contents_are_asked_for_when_items_are_read_in_order_and_no_more_when_not(
    bench: Bench,
) -> None:
    base = BASES[0]

    assert reads(bench, base + 10) == []
    assert reads(bench, base + 11) == [Stretch(12, FIRST_WINDOW)]
    for row in (11, *range(30, NUMBER, FAR)):
        assert reads(bench, base + row) == []
    assert reads(bench, (1 << 35) + base + 12) == []  # no row


def test_contents_are_not_asked_for_while_opens_are_the_daemons(bench: Bench) -> None:
    """Who is traced is to be seen reading."""
    bench.let_open(opens=False)
    bench.tell_contents(BASES[0], [(10, content_of(10))])

    assert opens(bench, BASES[0] + 10) is None
    for row in range(10, 20):
        assert reads(bench, BASES[0] + row) == []


def test_opens_alone_ask_for_nothing(bench: Bench) -> None:
    """For the kernel may have all of their pages."""
    for row in range(1, 100):
        opens(bench, BASES[0] + row)
    assert bench.told() == []


def test_opens_ask_for_the_next_contents_when_reads_have_begun_with_that(bench: Bench) -> None:
    base = BASES[0]
    reads(bench, base + 1)
    stretches = reads(bench, base + 2)
    for row in range(3, 200):
        opens(bench, base + row)
        stretches += asked(bench)

    ahead = [row for each in stretches for row in range(each.first, each.first + each.length)]
    assert ahead == [*range(3, ahead[-1] + 1)]
    assert ahead[-1] >= 200
    assert len(stretches) < 12


def test_what_did_not_fit_is_asked_for_again(bench: Bench) -> None:
    base = BASES[0]
    reads(bench, base + 1)
    (first,) = reads(bench, base + 2)

    told = messages.CONTENTS.pack(Kind.CONTENTS, 2, base, *first)
    bench.ours.messages.send(told)
    bench.forget(0)
    opens(bench, base + first.first + 1)

    (following,) = asked(bench)
    assert following.first == first.first + 2


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400) | st.builds(lambda n: packed([(1, b"abc")])[:n], st.integers(0, 40)))
def test_what_is_no_pack_is_told_so(data: bytes) -> None:
    told = Contents()
    try:
        told.tell(BASES[0], data)
    except (struct.error, ValueError):
        return
    for row in range(5):
        found = told.take(BASES[0], row)
        assert found is None or bytes(found) in data


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.binary(max_size=50)), max_size=30))
def test_pack_has_what_was_packed(given: list[tuple[int, bytes]]) -> None:
    told, last = Contents(), dict(given)
    told.tell(7, packed(given))

    for row in range(51):
        found = told.take(7, row)
        assert (None if found is None else bytes(found)) == (last.get(row) or None)
        assert told.take(7, row) is None
        assert told.take(8, row) is None


@pytest.mark.parametrize(
    ("limit", "most", "size", "last"),
    [("MAX_BYTES", 3000, 1000, [8, 9]), ("MAX_PACKS", 3, 1, [7, 8, 9])],
)
def test_contents_that_were_told_first_go_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, size: int, last: list[int]
) -> None:
    """However little packs have, for all are looked through at each open."""
    monkeypatch.setattr(contents, limit, most)
    told = Contents()
    for row in range(10):
        told.tell(row % 2, packed([(row, bytes([row]) * size)]))

    kept = [row for row in range(10) if told.take(row % 2, row) is not None]
    assert kept == last
    told.tell(0, packed([(1, b"x" * 5000)]))  # one alone may be larger
    assert bytes(told.take(0, 1) or b"") == b"x" * 5000
