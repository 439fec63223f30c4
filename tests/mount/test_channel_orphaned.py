"""A channel without a daemon: what it answers, what waits, and what the next daemon is given."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.mount.channel import messages, under_way, wire
from dserverfs.mount.channel.frozen import FIRST_HANDLE
from dserverfs.mount.channel.handles import Opened, Use
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.messages import Shared
from dserverfs.mount.channel.wire import Opcode
from tests.support.channel_bench import Answer, Bench, answer_in, readable, running
from tests.support.channel_heirs import Heir, Heirs, heirs
from tests.support.patience import LATE_S

MKDIR = 9
FIRST = wire.REQUEST.pack(60, Opcode.INIT, 2, 0, 0, 0, 0, 0, 0) + b"first of all requests"[:20]
FIRST_REPLY = wire.reply(2, 0, 8) + b"abilitie"


@pytest.fixture
def made() -> Iterator[tuple[Bench, Heirs]]:
    with orphans() as both:
        yield both


@contextlib.contextmanager
def orphans() -> Iterator[tuple[Bench, Heirs]]:
    """Yield a channel that the kernel and its daemon have begun with, and what follows that."""
    with (
        tempfile.TemporaryDirectory() as directory,
        heirs(Path(directory)) as known,
        running(known.recipe) as bench,
    ):
        assert bench.outcome(FIRST).passed == FIRST
        bench.ours.libfuse.send(FIRST_REPLY)
        assert bench.kernel.recv(100) == FIRST_REPLY
        yield bench, known


def follow(bench: Bench, heir: Heir, reply: bytes = FIRST_REPLY) -> None:
    """Have a daemon take the place of the dead one."""
    assert bench.take_place(heir.ends, heir.device, heir.journal) == FIRST
    heir.ends.libfuse.send(reply)


def serve_once_more(bench: Bench, known: Heirs, asked: bytes, end: signal.Signals) -> None:
    """Have a daemon take the place of the last, be asked again what that was asked, and end."""
    bench.die()
    heir = known.next()
    follow(bench, heir)
    bench._serves(known.recipe)
    assert bench.next().passed == asked
    heir.die(end)


def ask(opcode: int, inode: int, body: bytes, unique: int) -> bytes:
    length = wire.REQUEST.size + len(body)
    return wire.REQUEST.pack(length, opcode, unique, inode, 0, 0, 0, 0, 0) + body


def read(inode: int, offset: int, size: int, unique: int, handle: int = 3) -> bytes:
    return ask(Opcode.READ, inode, wire.READ.pack(handle, offset, size, 0, 0, 0, 0), unique)


def answers(bench: Bench, number: int) -> dict[int, Answer]:
    """Return so many answers to the kernel, by the number of the request."""
    found = (answer_in(readable(bench.kernel).recv(1 << 21)) for _ in range(number))
    return {each.unique: each for each in found}


def test_what_was_told_is_answered_and_the_rest_waits_in_its_order(
    made: tuple[Bench, Heirs],
) -> None:
    bench, known = made
    content = os.urandom(BLOCK_SIZE)
    bench.path.write_bytes(content)
    bench.tell(5, 0, 1, BLOCK_SIZE, 0)
    bench.die()
    heir = known.next()

    bench.kernel.send(ask(Opcode.LOOKUP, 1, b"name\0", 10))
    bench.kernel.send(read(6, 0, 100, 12))
    bench.kernel.send(ask(MKDIR, 1, bytes(8) + b"made\0", 14))
    bench.kernel.send(ask(Opcode.WRITE, 6, wire.WRITE.pack(3, 0, 1, 0, 0, 0, 0) + b"x", 16))
    bench.kernel.send(read(5, 10, 100, 18))

    found = answers(bench, 2)
    assert (found[16].errno, found[18].data) == (errno.EIO, content[10:110])
    follow(bench, heir)
    assert bench.next().passed == ask(Opcode.LOOKUP, 1, b"name\0", 10)
    passed = {bench.next().message for _ in range(2)}
    assert ask(MKDIR, 1, bytes(8) + b"made\0", 14) in passed
    assert any(each.endswith(read(6, 0, 100, 12)) for each in passed)
    # What the dead daemon told is not answered any more: the new one cannot take it back.
    told = bench.outcome(read(5, 10, 100, 20)).told
    assert told is not None
    assert told[messages.READ_AT :] == read(5, 10, 100, 20)


def test_what_was_under_way_is_asked_again_or_fails(made: tuple[Bench, Heirs]) -> None:
    bench, known = made
    lookup, mkdir = ask(Opcode.LOOKUP, 1, b"n\0", 10), ask(MKDIR, 1, bytes(8) + b"m\0", 12)
    opens = ask(Opcode.OPEN, 5, wire.OPEN.pack(os.O_RDONLY, 0), 14)
    writes = ask(Opcode.OPEN, 5, wire.OPEN.pack(os.O_RDWR, 0), 16)
    release = ask(Opcode.RELEASE, 5, wire.RELEASE.pack(3) + bytes(16), 18)
    answered = ask(Opcode.GETATTR, 5, bytes(16), 20)
    for each in (lookup, mkdir, opens, writes, release, answered):
        assert bench.outcome(each).passed == each
    bench.ours.libfuse.send(wire.reply(20, errno.EACCES))
    assert answers(bench, 1)[20].errno == errno.EACCES
    reads = [read(6, at, 10, 30 + 2 * at) for at in range(2)]
    marks = []
    for each in reads:
        told = bench.outcome(each).told
        assert told is not None
        marks.append(messages.READ.unpack_from(told)[1])
    bench.shared.answered(marks[0])

    bench.die()

    assert {unique: each.errno for unique, each in answers(bench, 3).items()} == {
        12: errno.EIO,
        16: errno.EIO,
        18: 0,
    }
    follow(bench, known.next())
    again = [bench.next().message for _ in range(3)]
    assert sorted(again, key=len)[:2] == [lookup, opens]
    assert again[-1].endswith(reads[1])


def test_handles_are_told_to_the_next_daemon(made: tuple[Bench, Heirs]) -> None:
    bench, known = made
    created = bytes(wire.ENTRY_OUT.size + wire.ATTR.size)
    created = Struct("=Q").pack(77) + created[8:] + wire.OPENED.pack(9, 0, 0)
    opened = [
        (ask(Opcode.OPEN, 5, wire.OPEN.pack(os.O_RDONLY, 0), 10), wire.OPENED.pack(6, 0, 0)),
        (ask(Opcode.OPEN, 6, wire.OPEN.pack(os.O_WRONLY, 0), 12), wire.OPENED.pack(7, 0, 0)),
        (ask(Opcode.OPENDIR, 1, wire.OPEN.pack(0, 0), 14), wire.OPENED.pack(8, 0, 0)),
        (ask(Opcode.CREATE, 1, wire.OPEN.pack(os.O_RDWR, 0) + b"\0" * 9, 16), created),
        (ask(Opcode.OPEN, 7, wire.OPEN.pack(0, 0), 18), wire.OPENED.pack(10, 0, 0)),
        (ask(Opcode.OPEN, 8, wire.OPEN.pack(0, 0), 20), None),
    ]
    for request, answer in opened:
        assert bench.outcome(request).passed == request
        unique = wire.REQUEST.unpack_from(request)[2]
        reply = wire.reply(unique, 0, len(answer)) + answer if answer else wire.reply(unique, 2)
        bench.ours.libfuse.send(reply)
        assert bench.kernel.recv(1000) == reply
    release = ask(Opcode.RELEASE, 7, wire.RELEASE.pack(10) + bytes(16), 22)
    assert bench.outcome(release).passed == release

    for turn in range(2):
        bench.die()
        if not turn:
            assert answers(bench, 1)[22].errno == 0
        heir = known.next()
        assert heir.handles.last == 10
        assert heir.handles.opened == {
            6: Opened(5, Use.READS),
            7: Opened(6, Use.WRITES),
            8: Opened(1, Use.LISTS),
            9: Opened(77, Use.WRITES),
        }
        bench.ours = heir.ends
        heir.die()


@pytest.mark.parametrize(
    ("number", "limit"), [(signal.SIGKILL, "MAX_KILLS"), (signal.SIGSEGV, "MAX_CRASHES")]
)
def test_request_that_daemons_die_of_fails_at_last(
    made: tuple[Bench, Heirs], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, limit: str
) -> None:
    """The first one, of which nobody knows how it died, counts as killed."""
    for each in ("MAX_KILLS", "MAX_CRASHES"):
        monkeypatch.setattr(under_way, each, 3 if each == limit else 1000)
    bench, known = made
    lookup = ask(Opcode.LOOKUP, 1, b"poison\0", 10)
    assert bench.outcome(lookup).passed == lookup
    for _ in range(2 if limit == "MAX_KILLS" else 3):
        serve_once_more(bench, known, lookup, number)

    bench.die()

    assert answers(bench, 1)[10].errno == errno.EIO


def test_request_that_a_daemon_had_when_it_was_killed_is_not_held_to_be_the_reason(
    made: tuple[Bench, Heirs],
) -> None:
    bench, known = made
    lookup = ask(Opcode.LOOKUP, 1, b"n\0", 10)
    assert bench.outcome(lookup).passed == lookup
    for number in [signal.SIGKILL] * under_way.MAX_CRASHES + [signal.SIGSEGV]:
        serve_once_more(bench, known, lookup, number)
    bench.die()
    follow(bench, known.next())

    assert bench.next().passed == lookup


def test_daemon_of_other_abilities_is_the_end_of_the_mount(made: tuple[Bench, Heirs]) -> None:
    bench, known = made
    bench.die()
    heir = known.next()

    follow(bench, heir, FIRST_REPLY[:-1] + b"!")

    assert bench.has_ended()
    assert known.recipe.log is not None
    assert "other abilities" in Path(known.recipe.log).read_text()


def test_daemon_that_ends_the_mount_is_not_followed(made: tuple[Bench, Heirs]) -> None:
    bench, _ = made
    bench.ours.messages.send(messages.KIND.pack(messages.Kind.END))

    bench.die()

    assert bench.has_ended()


def test_requests_wait_for_another_daemon_when_nothing_is_under_way(
    made: tuple[Bench, Heirs],
) -> None:
    bench, _ = made
    mkdir, lookup = ask(MKDIR, 1, bytes(8) + b"m\0", 10), ask(Opcode.LOOKUP, 1, b"n\0", 12)
    assert bench.outcome(mkdir).passed == mkdir
    holds = messages.OPENS.pack(messages.Kind.HOLDS, 1)
    bench.ours.messages.send(holds)
    bench.let_open(opens=True)  # so that it holds by now

    bench.kernel.send(lookup)
    bench.ours.libfuse.send(wire.reply(10, errno.EEXIST))

    assert answers(bench, 1)[10].errno == errno.EEXIST
    assert readable(bench.ours.forgotten).recv(100) == holds
    bench.ours.messages.send(messages.OPENS.pack(messages.Kind.HOLDS, 0))
    assert bench.next().passed == lookup


def test_an_answer_that_comes_too_late_is_not_one_to_the_next_question() -> None:
    ours, theirs = messages.Sockets.pair()
    memory = Shared.create()
    link = Link(subprocess.Popen(["true"]), ours, Shared(memory))
    os.close(memory)
    holds = messages.OPENS.pack(messages.Kind.HOLDS, 1)
    with ThreadPoolExecutor(1) as pool:
        theirs.forgotten.send(holds)
        asked = pool.submit(link.hold)
        assert readable(theirs.messages).recv(100) == holds
        theirs.forgotten.send(holds)

        assert asked.result(LATE_S)
    assert select.select([ours.forgotten], [], [], 0)[0] == []
    theirs.close()
    link.close()


def without_room(request: bytes) -> bytes:
    """Return a request; one for a listing without how much it asks for, which may be too much."""
    opcode = wire.REQUEST.unpack_from(request)[1]
    if opcode in (Opcode.READDIR, Opcode.READDIRPLUS) and len(request) >= wire.READ_BYTES:
        return bytes(wire.with_room(memoryview(request), 0))
    return request


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_no_request_ends_an_orphaned_channel_or_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    with orphans() as (bench, known):
        bench.die()
        unique, opcodes = 100, [*range(1, 60), *map(int, Opcode)]
        asked: dict[int, bytes] = {}
        for _ in range(100):
            unique += 2
            opcode, body = rng.choice(opcodes), rng.randbytes(rng.choice([0, 4, 8, 40, 200]))
            if opcode in (Opcode.INIT, Opcode.INTERRUPT, Opcode.FORGET, Opcode.BATCH_FORGET):
                continue  # they are not answered, or were
            if opcode == Opcode.NOTIFY_REPLY:
                continue
            asked[unique] = ask(opcode, rng.choice([1, 5, FIRST_HANDLE]), body, unique)
            bench.kernel.send(asked[unique])
        follow(bench, known.next())
        while asked:
            came = bench.next()
            if came.answer is not None:
                del asked[came.answer.unique]
                continue
            if came.passed is not None:
                request = asked.pop(wire.REQUEST.unpack_from(came.passed)[2])
                assert without_room(request) == without_room(came.passed)
                continue
            assert came.told is not None
            kind = messages.KIND.unpack_from(came.told)[0]
            if kind == messages.Kind.WANTED:
                _, _, base, piece = messages.PIECE.unpack(came.told)
                bench.tell_no_rows(base, piece, errno.EIO)
            elif kind == messages.Kind.READ:
                request = came.told[messages.READ_AT :]
                assert asked.pop(wire.REQUEST.unpack_from(request)[2])[: len(request)] == request
