"""What a channel answers about frozen datasets: rows that it was told and that were not taken back.

All else is passed on as it came, whatever the kernel and libfuse send.
"""

from __future__ import annotations

import errno
import os
import random
import select
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.mount.channel import frozen, messages, rows, wire
from dserverfs.mount.channel.frozen import FIRST_HANDLE
from dserverfs.mount.channel.messages import Kind
from dserverfs.mount.channel.rows import ROWS, Extent
from dserverfs.mount.channel.wire import Opcode
from dserverfs.mount.replies import Ownership, packed
from dserverfs.tree.attributes import FROZEN_S, Attributes, Entry
from tests.support.channel_bench import Answer, Bench, answer_in, readable, running

BASES = (3 << 36, 4 << 36)
NUMBER = 2 * ROWS + 200  # of rows; the first three are directories
EXTENTS = {0: Extent(1, 400), 1: Extent(401, 0), 2: Extent(401, NUMBER - 401)}
REFUSED = 7
OWNER = Ownership(1000, 100, 0o027)


def name_of(row: int) -> bytes:
    return b"%06d" % row + b"n" * (row % 90)


def packed_row(base: int, row: int) -> bytes:
    is_directory = row in EXTENTS
    attributes = Attributes(base + row, is_directory, 0o755, row**2, -row * 10**9 + 5, FROZEN_S)
    return packed(Entry(name_of(row).decode(), attributes, row), OWNER)


def piece(base: int, number: int) -> bytes:
    first = number * ROWS
    extents, refused = (EXTENTS, [REFUSED]) if number == 0 else ({}, [])
    return rows.packed(first, ROWS_OF[base][first:][:ROWS], extents, refused)


ROWS_OF = {base: [packed_row(base, row) for row in range(NUMBER)] for base in BASES}
PIECES = {
    (base, number): piece(base, number) for base in BASES for number in range(-(-NUMBER // ROWS))
}


def request(opcode: int, inode: int, body: bytes, unique: int = 77, uid: int = 5) -> bytes:
    length = wire.REQUEST.size + len(body)
    return wire.REQUEST.pack(length, opcode, unique, inode, uid, 0, 0, 0, 0) + body


def listing(inode: int, offset: int, size: int, handle: int = FIRST_HANDLE) -> bytes:
    return request(Opcode.READDIRPLUS, inode, wire.READ.pack(handle, offset, size, 0, 0, 0, 0))


class Listed(NamedTuple):
    record: bytes
    name: bytes
    behind: int


def listed(data: bytes) -> Iterator[Listed]:
    """Yield the entries of an answer to READDIRPLUS."""
    while data:
        _, behind, length, _ = wire.DIRENT.unpack_from(data, wire.ENTRY_BYTES)
        start = wire.ENTRY_BYTES + wire.DIRENT.size
        stop = start + length + (-length) % 8
        yield Listed(data[:stop], data[start : start + length], behind)
        data = data[stop:]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


INODES = st.tuples(st.sampled_from(BASES), st.integers(0, NUMBER + 5)).map(sum)
REQUESTS = st.one_of(
    st.tuples(st.just(Opcode.LOOKUP), INODES, st.integers(0, NUMBER + 5).map(name_of)),
    st.tuples(st.just(Opcode.GETATTR), INODES, st.just(b"")),
    st.tuples(st.just(Opcode.OPEN), INODES, st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_APPEND])),
    st.tuples(st.just(Opcode.OPENDIR), INODES, st.just(os.O_RDONLY)),
)
STEPS = st.lists(
    REQUESTS
    | st.tuples(st.just("piece"), st.sampled_from(sorted(PIECES)), st.just(None))
    | st.tuples(st.sampled_from(["tell", "take back"]), st.sampled_from(BASES), st.just(None)),
    max_size=40,
)


class Model:
    """What may be answered."""

    def __init__(self) -> None:
        self.told: set[int] = set()
        self.pieces: set[tuple[int, int]] = set()

    def has(self, base: int, row: int) -> bool:
        return base in self.told and (base, row // ROWS) in self.pieces and row < NUMBER


def body_of(opcode: int, argument: object) -> bytes:
    if isinstance(argument, bytes):
        return argument + b"\0" if opcode == Opcode.LOOKUP else bytes(16)
    assert isinstance(argument, int)
    return wire.OPEN.pack(argument, 0)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_answer_is_the_row_that_was_told(steps: list[tuple[object, ...]]) -> None:
    model = Model()
    with running() as bench:
        for step, subject, argument in steps:
            if step == "piece":
                assert isinstance(subject, tuple)
                bench.tell_rows(subject[0], subject[1], PIECES[subject])
                model.pieces.add(subject)
            elif step == "tell":
                assert isinstance(subject, int)
                bench.tell_dataset(subject)
                model.told.add(subject)
            elif step == "take back":
                assert isinstance(subject, int)
                bench.take_back(subject)
                model.told.discard(subject)
                model.pieces = {key for key in model.pieces if key[0] != subject}
            else:
                assert isinstance(step, int)
                assert isinstance(subject, int)
                judge(bench, model, step, subject, argument)


def judge(bench: Bench, model: Model, opcode: int, inode: int, argument: object) -> None:
    """Ask, and require that the answer is the row's, or that another answers."""
    base, row = inode & ~rows.ROW_MASK, inode & rows.ROW_MASK
    asked = request(opcode, inode, body_of(opcode, argument))
    outcome = bench.outcome(asked)
    if outcome.told is None and readable_now(bench):  # it was missed often enough
        wanted_by(bench, model, base, bench.next(bench.ours.messages).told)
    if outcome.told is not None:  # likewise, or it waits; then it is answered or passed on
        wanted_by(bench, model, base, outcome.told)
        outcome = bench.next()
        assert outcome.passed == asked
    if outcome.passed is not None:
        assert outcome.passed == asked
        return
    answer = outcome.answer
    assert answer is not None
    assert (answer.unique, answer.errno) == (77, 0)
    assert model.has(base, row)
    if opcode == Opcode.LOOKUP:
        assert isinstance(argument, bytes)
        extent = EXTENTS[row]
        found = int(argument[:6])
        is_there = extent.first <= found < extent.first + extent.number
        entry = ROWS_OF[base][found][: wire.ENTRY_BYTES] if is_there else None
        assert (answer.data == entry) if entry else not any(answer.data[:8])
    elif opcode == Opcode.GETATTR:
        assert answer.data[wire.ATTR_OUT.size :] == attributes_of(base, row)
        assert wire.ATTR_OUT.unpack_from(answer.data) == (int(FROZEN_S), 0, 0)
    else:
        handle, flags, _ = wire.OPENED.unpack(answer.data)
        assert handle >= FIRST_HANDLE
        assert flags & wire.KEEP_CACHE
        if opcode == Opcode.OPEN:
            assert argument == os.O_RDONLY
            assert row not in {REFUSED, *EXTENTS}
        else:
            assert row in EXTENTS


def wanted_by(bench: Bench, model: Model, base: int, told: bytes | None) -> None:
    """Say that there is no such piece."""
    assert told is not None
    kind, _, wanted, number = messages.PIECE.unpack(told)
    assert (kind, wanted) == (Kind.WANTED, base)
    assert base in model.told
    assert (base, number) not in model.pieces
    bench.tell_no_rows(base, number, errno.EACCES)


def attributes_of(base: int, row: int) -> bytes:
    return ROWS_OF[base][row][wire.ENTRY_OUT.size : wire.ENTRY_BYTES]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(300, 40_000), min_size=1), st.sampled_from([0, 2]))
def test_listing_has_each_entry_once_in_order_whatever_fits(sizes: list[int], row: int) -> None:
    base = BASES[0]
    with running() as bench:
        bench.tell_dataset(base)
        found: list[Listed] = []
        offset, wanted = 0, set()
        for size in [*sizes, *[40_000] * 40]:
            outcome = bench.outcome(listing(base + row, offset, size))
            while outcome.told is not None:
                kind, _, _, number = messages.PIECE.unpack(outcome.told)
                assert kind == Kind.WANTED
                assert number not in wanted, "asked for twice"
                wanted.add(number)
                bench.tell_rows(base, number, PIECES[base, number])
                outcome = bench.next()
            assert outcome.answer is not None
            assert outcome.answer.errno == 0
            assert len(outcome.answer.data) <= size
            part = list(listed(outcome.answer.data))
            found += part
            if not part:
                break
            offset = part[-1].behind
            # The next piece is asked for ahead.
            while readable_now(bench):
                _, _, _, number = messages.PIECE.unpack(bench.ours.messages.recv(100))
                wanted.add(number)
                bench.tell_rows(base, number, PIECES[base, number])

        extent = EXTENTS[row]
        assert [each.name for each in found[:2]] == [b".", b".."]
        assert not any(each.record[:8].strip(b"\0") for each in found[:2])
        assert [each.record for each in found[2:]] == [
            ROWS_OF[base][each] for each in range(extent.first, extent.first + extent.number)
        ]
        assert len({each.behind for each in found}) == len(found)


def readable_now(bench: Bench) -> bool:
    return bool(select.select([bench.ours.messages], [], [], 0)[0])


def test_piece_that_is_missed_again_and_again_is_asked_for(bench: Bench) -> None:
    """A program opens items that nobody has listed."""
    base = BASES[0]
    bench.tell_dataset(base)
    opening = request(Opcode.OPEN, base + ROWS + 5, wire.OPEN.pack(os.O_RDONLY, 0))

    outcomes = [bench.outcome(opening) for _ in range(frozen.MISSES - 1)]
    assert [each.passed for each in outcomes] == [opening] * (frozen.MISSES - 1)
    bench.kernel.send(opening)
    wanted = bench.next(bench.ours.messages).told
    assert wanted == messages.PIECE.pack(Kind.WANTED, 0, base, 1)
    assert bench.next(bench.ours.libfuse).passed == opening
    for _ in range(2 * frozen.MISSES):  # it is under way
        assert bench.outcome(opening).passed == opening
    bench.tell_rows(base, 1, PIECES[base, 1])

    assert bench.outcome(opening).answer is not None


def test_no_piece_is_asked_for_in_the_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BASES[0]
    monkeypatch.setattr(frozen, "MAX_BYTES", frozen.PIECE_BYTES)
    with running() as bench:
        bench.tell_dataset(base)
        opening = request(Opcode.OPEN, base + ROWS + 5, wire.OPEN.pack(os.O_RDONLY, 0))
        for _ in range(3 * frozen.MISSES):
            assert bench.outcome(opening).passed == opening


def test_requests_that_wait_end_as_the_daemon_says(bench: Bench) -> None:
    base = BASES[0]
    bench.tell_dataset(base)
    asked = request(Opcode.OPENDIR, base, wire.OPEN.pack(0, 0))
    for wait in (asked, listing(base, 0, 4096)):
        assert bench.outcome(wait).told == messages.PIECE.pack(Kind.WANTED, 0, base, 0)
        bench.tell_no_rows(base, 0, errno.EHOSTUNREACH)
        outcome = bench.next()
        if wait is asked:
            assert outcome.passed == asked
        else:
            assert outcome.answer is not None
            assert outcome.answer.errno == errno.EHOSTUNREACH


def test_items_are_not_opened_while_that_is_noted(bench: Bench) -> None:
    base = BASES[0]
    bench.tell_dataset(base)
    bench.tell_rows(base, 0, PIECES[base, 0])
    asked = request(Opcode.OPEN, base + 5, wire.OPEN.pack(os.O_RDONLY, 0))

    bench.let_open(opens=False)
    assert bench.outcome(asked).passed == asked
    bench.let_open(opens=True)
    assert bench.outcome(asked).answer is not None


def test_handles_are_closed_and_those_the_daemon_heard_of_are_told(bench: Bench) -> None:
    for opcode in (Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.FSYNC, Opcode.FSYNCDIR):
        for handle in (FIRST_HANDLE + 3, 3):
            asked = request(opcode, BASES[0], wire.RELEASE.pack(handle) + bytes(16))
            outcome = bench.outcome(asked)
            if handle < FIRST_HANDLE:
                assert outcome.passed == asked
            else:
                assert outcome.answer == (77, 0, b"")
    read = wire.READ.pack(FIRST_HANDLE + 9, 0, 100, 0, 0, 0, 0)
    assert bench.outcome(request(Opcode.READ, BASES[0] + 5, read)).told is not None
    closed = request(Opcode.RELEASE, BASES[0] + 5, wire.RELEASE.pack(FIRST_HANDLE + 9) + bytes(16))
    outcomes = [bench.outcome(closed), bench.next()]
    told = [outcome.told for outcome in outcomes if outcome.told]
    assert told == [messages.RELEASED.pack(Kind.RELEASED, 0, FIRST_HANDLE + 9)]


# Requests and replies that are none

RAW = st.binary(min_size=1, max_size=300)
OPCODES = st.sampled_from([*wire.Opcode]) | st.integers(0, 60) | st.integers(0, 2**32 - 1)
MALFORMED = st.builds(
    lambda opcode, inode, body, off: (
        wire.REQUEST.pack(
            (wire.REQUEST.size + len(body) + off) % 2**32, opcode, 99, inode, 0, 0, 0, 0, 0
        )
        + body
    ),
    OPCODES,
    INODES | st.integers(0, 2**64 - 1),
    st.binary(max_size=120) | st.builds(bytes, st.integers(0, 90)),
    st.sampled_from([0, 0, 1, -1, 1000]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["kernel", "libfuse"]), RAW | MALFORMED), max_size=30))
def test_malformed_requests_and_replies_neither_end_it_nor_are_answered_wrongly(
    sent: list[tuple[str, bytes]],
) -> None:
    base, content = BASES[0], random.Random(1).randbytes(BLOCK_SIZE)
    with running() as bench:
        bench.path.write_bytes(content)
        bench.tell(base + 5, 0, 1, BLOCK_SIZE, 0)
        bench.tell_dataset(base)
        for key in PIECES:
            bench.tell_rows(*key, PIECES[key])
        for whom, data in sent:
            (bench.kernel if whom == "kernel" else bench.ours.libfuse).send(data)

        read = request(
            Opcode.READ, base + 5, wire.READ.pack(1, 4096, 100, 0, 0, 0, 0), unique=2**63
        )
        bench.kernel.send(read)
        answers = answers_until(bench, 2**63, {data for _, data in sent})
        assert answers[2**63].data == content[4096:4196]
        # A request that says another length than it has is no request.
        for whom, data in sent:
            if whom == "kernel" and len(data) >= wire.REQUEST.size:
                length, _, unique, *_ = wire.REQUEST.unpack_from(data)
                if length != len(data) and unique in answers and unique != 99:
                    assert answers[unique].errno == errno.EIO
        for number in messages_of(bench):
            assert number in {Kind.READ, Kind.WRITE, Kind.TOUCHED, Kind.WANTED, Kind.RELEASED}


def answers_until(bench: Bench, unique: int, sent: set[bytes]) -> Mapping[int, Answer]:
    """Return the answers up to that of a request; what was passed on is as it came."""
    answers: dict[int, Answer] = {}
    while unique not in answers:
        assert readable(bench.kernel) is bench.kernel
        data = bench.kernel.recv(1 << 21)
        if data not in sent:
            answer = answer_in(data)
            answers[answer.unique] = answer
    return answers


def messages_of(bench: Bench) -> Iterator[int]:
    while readable_now(bench):
        yield messages.KIND.unpack_from(bench.ours.messages.recv(messages.MAX_BYTES))[0]


def test_pieces_are_in_order() -> None:
    """As the search for a name takes them to be."""
    for extent in EXTENTS.values():
        names = [name_of(row) for row in range(extent.first, extent.first + extent.number)]
        assert all(one < other for one, other in pairwise(names))
