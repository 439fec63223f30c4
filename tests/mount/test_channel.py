"""The channel between the kernel and the daemon, with sockets in the place of the device.

Whatever the daemon tells and the kernel asks, an answer is of a block that may be read, and has
its bytes; all else is passed on as it came, once, in its order.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.checksums import checksums
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.messages import Counts, Kind
from tests.support.channel_bench import Bench, readable, running
from tests.support.patience import LATE_S

LENGTHS = (BLOCK_SIZE, BLOCK_SIZE, 70_001)  # of an item's blocks


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


ITEMS = st.integers(5, 7)
INDICES = st.integers(0, len(LENGTHS) - 1)
READS = st.tuples(
    st.just("read"),
    ITEMS,
    st.integers(0, sum(LENGTHS) + 10) | st.sampled_from([BLOCK_SIZE - 1, BLOCK_SIZE, 4096]),
    st.sampled_from([1, 4096, 128 * 1024]) | st.integers(0, wire.MAX_DATA_BYTES),
)
STEPS = st.lists(
    READS
    | st.tuples(st.sampled_from(["tell", "lose", "lose-older"]), ITEMS, INDICES, st.just(0))
    | st.tuples(st.just("forget"), ITEMS, st.just(0), st.just(0)),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 1000))
def test_answer_is_of_a_block_that_may_be_read(
    steps: list[tuple[str, int, int, int]], seed: int
) -> None:
    rng = random.Random(seed)
    with running() as bench:
        content = rng.randbytes(1 << 16) * 20
        bench.path.write_bytes(content)
        told: dict[tuple[int, int], tuple[int, int]] = {}  # number and start
        for number, (step, inode, first, size) in enumerate(steps, 1):
            if step == "tell":
                start = rng.randrange(1 << 16)
                bench.tell(inode, first, number, LENGTHS[first], start)
                told[inode, first] = (number, start)
            elif step == "lose":
                bench.lose(inode, first, told.pop((inode, first), (0, 0))[0])
            elif step == "lose-older":
                bench.lose(inode, first, told.get((inode, first), (1, 0))[0] - 1)
            elif step == "forget":
                bench.forget(inode)
                told = {key: each for key, each in told.items() if key[0] != inode}
            else:
                end = min(first + size, sum(LENGTHS))
                needed = range(first // BLOCK_SIZE, (max(end - 1, first)) // BLOCK_SIZE + 1)
                answer = bench.read(inode, first, size)
                if not all((inode, index) in told for index in needed):
                    assert answer is None
                elif answer is not None:
                    expected = b"".join(
                        content[told[inode, index][1] :][: LENGTHS[index]] for index in needed
                    )
                    start = first - needed[0] * BLOCK_SIZE
                    assert 0 < len(answer.data) == end - first
                    assert answer.data == expected[start : start + end - first]
                    assert answer.errno == 0


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.integers(0, 3 * BLOCK_SIZE - 1), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.integers(0, 3 * BLOCK_SIZE - 1), st.sampled_from([1, 4096, 200_000])),
        max_size=20,
    ),
)
def test_wrong_bytes_are_the_daemons_and_told_once(
    wrong: set[int], reads: list[tuple[int, int]]
) -> None:
    """Several blocks of one file and message; what is damaged is damaged before it is read."""
    with running() as bench:
        content = random.Random(3).randbytes(BLOCK_SIZE) * 3
        bench.path.write_bytes(content)
        bench.tell_all(8, [(i, i + 10, BLOCK_SIZE, i * BLOCK_SIZE) for i in range(3)])
        bench.forget(0)  # it was taken
        with bench.path.open("r+b") as file:
            for place in wrong:
                file.seek(place)
                file.write(bytes([content[place] ^ 1]))
        for offset, size in [*reads, *((place, 1) for place in wrong)]:
            answer = bench.read(8, offset, size)
            if answer is not None:
                end = min(offset + size, len(content))
                assert answer.data == content[offset:end]
                assert not any(offset <= place < end for place in wrong)

        damaged = [each for each in bench.touched if each[0] == Kind.DAMAGED]
        indices = {place // BLOCK_SIZE for place in wrong}
        assert sorted(damaged) == [(Kind.DAMAGED, 0, 8, i, i + 10) for i in sorted(indices)]


def test_block_whose_file_has_not_come_is_the_daemons(bench: Bench) -> None:
    content = os.urandom(2 * BLOCK_SIZE)
    bench.path.write_bytes(content)
    bench.tell_all(8, [(i, i + 1, BLOCK_SIZE, i * BLOCK_SIZE) for i in range(2)])
    told = messages.BLOCKS.pack(Kind.BLOCKS, 1, 8)
    told += messages.BLOCK.pack(0, BLOCK_SIZE, 2, 3, 0) + checksums(content[:BLOCK_SIZE])
    bench.ours.messages.send(told)

    answer = bench.read(8, BLOCK_SIZE, 100)
    assert answer is not None
    assert answer.data == content[BLOCK_SIZE:][:100]
    assert bench.read(8, 2 * BLOCK_SIZE, 100) is None


def test_file_of_many_blocks_is_open_once_and_closed_with_the_last(bench: Bench) -> None:
    """In as many messages as they come: of each the daemon has one file open, too."""
    bench.path.write_bytes(bytes(BLOCK_SIZE))

    def number_open() -> int:
        return len([1 for each in Path("/proc/self/fd").iterdir() if is_same(each, bench.path)])

    for number in range(1, 20):
        bench.tell(8, number, number, BLOCK_SIZE, 0)
    bench.forget(0)  # all were taken
    assert number_open() == 1
    assert bench.read(8, 5 * BLOCK_SIZE, 100) is not None
    bench.path.replace(bench.path.with_name("old"))
    bench.path.write_bytes(bytes([1]) * BLOCK_SIZE)
    bench.tell(8, 1, 20, BLOCK_SIZE, 0)
    bench.forget(0)
    answer = bench.read(8, BLOCK_SIZE, 100)
    assert answer is not None
    assert answer.data == bytes([1]) * 100
    assert number_open() == 1

    bench.forget(8)
    assert number_open() == 0


def is_same(entry: Path, path: Path) -> bool:
    try:
        return entry.samefile(path)
    except OSError:
        return False


def test_warm_block_is_answered_and_told_once_for_each_handle(bench: Bench) -> None:
    content = os.urandom(BLOCK_SIZE)
    bench.path.write_bytes(content)
    bench.tell(9, 2, 1, BLOCK_SIZE, 0)

    for handle in (3, 3, 4):
        answer = bench.read(9, 2 * BLOCK_SIZE + 4096, 4096, handle)
        assert answer is not None
        assert answer.data == content[4096:8192]

    assert bench.await_touched(2) == [
        (Kind.TOUCHED, 4096, handle, 2 * BLOCK_SIZE + 4096, 9) for handle in (3, 4)
    ]
    assert bench.shared.counts == Counts(3, 3 * 4096, 0, 0, 0)
    bench.ask(wire.Opcode.RELEASE, 9, wire.RELEASE.pack(3) + bytes(16))
    assert readable(bench.ours.libfuse).recv(1000)
    assert bench.read(9, 2 * BLOCK_SIZE, 10, 3) is not None
    assert bench.await_touched(3)[2][2] == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1).filter(lambda each: each not in {*wire.Opcode}),
            st.integers(0, 2**64 - 1),
            st.binary(max_size=200),
        ),
        max_size=40,
    )
)
def test_all_other_requests_and_all_replies_go_through_as_they_are(
    requests: list[tuple[int, int, bytes]],
) -> None:
    with running() as bench:
        asked = [bench.ask(*request)[1] for request in requests]
        bench.ask(wire.Opcode.INTERRUPT, 0, bytes(8))

        passed = [readable(bench.ours.libfuse).recv(1 << 17) for _ in asked]
        assert passed == asked
        for request in asked:
            bench.ours.libfuse.send(request)
        assert [readable(bench.kernel).recv(1 << 17) for _ in asked] == asked


def test_write_lies_in_a_slot_until_it_is_freed(bench: Bench) -> None:
    requests = []
    for number in range(messages.SLOTS + 3):
        data = bytes([number]) * 1000
        body = wire.WRITE.pack(7, number * 1000, len(data), 0, 0, 0, 0) + data
        requests.append(bench.ask(wire.Opcode.WRITE, 5, body)[1])

    seen = []
    for _ in requests:
        message = readable(bench.ours.messages).recv(messages.MAX_BYTES)
        _, _, slot, length = messages.WRITE.unpack(message)
        seen.append(bytes(bench.shared.slot(slot)[:length]))
        bench.ours.messages.send(messages.FREE.pack(Kind.FREE, slot))

    assert seen == requests


def test_requests_wait_while_the_daemon_takes_none(bench: Bench) -> None:
    """And nothing is lost or answered twice: warm reads go on as far as there is room."""
    bench.path.write_bytes(os.urandom(BLOCK_SIZE))
    passed = 3 * 1024
    sending = threading.Thread(
        target=lambda: [bench.ask(1, number, b"name\0") for number in range(passed)], daemon=True
    )
    sending.start()

    for number in range(passed):
        request = readable(bench.ours.libfuse).recv(1000)
        assert wire.REQUEST.unpack_from(request)[3] == number
    sending.join(LATE_S)


def test_end_of_the_connection_is_told(bench: Bench) -> None:
    bench.kernel.shutdown(socket.SHUT_RDWR)

    message = readable(bench.ours.messages).recv(messages.MAX_BYTES)
    assert messages.KIND.unpack_from(message)[0] == Kind.ENDED
