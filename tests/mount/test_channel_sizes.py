"""Requests, replies and messages that a socket or the kernel does not take: no end of the mount."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.messages import Kind, Shared, Sockets
from dserverfs.mount.channel.outbox import Outbox
from tests.support.channel_bench import Bench, readable, running
from tests.support.mount_daemons import Remountable
from tests.support.patience import LATE_S

pytest_plugins = ["tests.support.mount_fixtures"]

# The names that one getdents64 of a program with much room says, and then those of all others.
LIST = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
room = ctypes.create_string_buffer(1 << 20)
while (count := libc.syscall(217, fd, room, len(room))) > 0:
    start = 0
    while start < count:
        length = int.from_bytes(room[start + 16:start + 18], "little")
        print(room[start + 19:start + length].partition(b"\\0")[0].decode())
        start += length
sys.exit(ctypes.get_errno())
"""
MANY = 2000


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


@pytest.mark.parametrize("number", [0, 1, 4000, 13_310, 65_000])
def test_all_that_the_kernel_forgets_at_once_is_forgotten(bench: Bench, number: int) -> None:
    each = [(inode, inode % 7) for inode in range(number)]
    forgotten = b"".join(
        inode.to_bytes(8, sys.byteorder) + times.to_bytes(8, sys.byteorder) for inode, times in each
    )
    bench.ask(wire.Opcode.BATCH_FORGET, 0, wire.BATCH_FORGET.pack(number, 0) + forgotten)
    _, last = bench.ask(99, 0, b"")

    found = b""
    while (message := readable(bench.ours.libfuse).recv(1 << 21)) != last:
        assert wire.REQUEST.unpack_from(message)[:2] == (len(message), wire.Opcode.BATCH_FORGET)
        part = message[wire.REQUEST.size + wire.BATCH_FORGET.size :]
        count, _ = wire.BATCH_FORGET.unpack_from(message, wire.REQUEST.size)
        assert len(part) == count * wire.FORGOTTEN_BYTES
        found += part
    assert found == forgotten


@pytest.mark.parametrize("opcode", [wire.Opcode.READDIR, wire.Opcode.READDIRPLUS])
def test_libfuse_is_asked_for_no_more_of_a_listing_than_it_can_answer(
    bench: Bench, opcode: int
) -> None:
    bench.ask(opcode, 5, wire.READ.pack(3, 17, 4096, 1, 2, 3, 0))
    _, few = bench.ask(opcode, 5, wire.READ.pack(3, 17, 4096, 1, 2, 3, 0))
    bench.ask(opcode, 5, wire.READ.pack(3, 17, wire.MAX_DATA_BYTES, 1, 2, 3, 0))

    libfuse = bench.ours.libfuse
    readable(libfuse).recv(1 << 21)
    assert readable(libfuse).recv(1 << 21) == few
    request = readable(libfuse).recv(1 << 21)
    *before, size, flags, owner, opened, padding = wire.READ.unpack_from(request, wire.REQUEST.size)
    assert (before, flags, owner, opened, padding) == ([3, 17], 1, 2, 3, 0)
    assert 64 * 1024 < size < wire.MAX_DATA_BYTES
    answer = wire.reply(bench.unique, 0, size) + bytes(size)
    libfuse.send(answer)
    assert readable(bench.kernel).recv(1 << 21) == answer


def test_request_that_is_too_long_for_libfuse_fails(bench: Bench) -> None:
    _, longest = bench.ask(21, 5, bytes(8) + b"user.name\0" + bytes(1 << 16))  # SETXATTR
    assert readable(bench.ours.libfuse).recv(1 << 21) == longest
    unique, _ = bench.ask(21, 5, bytes(1 << 19))
    answer = bench.next().answer
    assert answer is not None
    assert answer == (unique, errno.EIO, b"")


def test_request_fails_whose_answer_the_kernel_does_not_take() -> None:
    with running(longest=1 << 16) as bench:
        bench.path.write_bytes(os.urandom(BLOCK_SIZE))
        bench.tell(8, 0, 1, BLOCK_SIZE, 0)

        long = bench.read(8, 0, BLOCK_SIZE)
        short = bench.read(8, 0, 4096)
        assert long is not None
        assert (long.errno, long.data) == (errno.EIO, b"")
        assert short is not None
        assert short.data == bench.path.read_bytes()[:4096]


class _NoMemory:
    """A socket that has no memory for what is sent, at first."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.times = 2

    def setblocking(self, blocks: bool) -> None:
        self._sock.setblocking(blocks)

    def send(self, message: bytes) -> int:
        if self.times:
            self.times -= 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return self._sock.send(message)


def test_message_for_which_there_is_no_memory_is_sent_later() -> None:
    ours, theirs = Sockets.pair()
    try:
        outbox = Outbox(_NoMemory(ours.messages))  # type: ignore[arg-type]
        for number in range(3):
            outbox.send(b"%d" % number)
        outbox.offer(b"not so important")
        outbox.flush()
        assert [theirs.messages.recv(100) for _ in range(3)] == [b"0", b"1", b"2"]
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
def test_what_the_channel_is_told_is_not_left_out(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Readers wait for a piece of rows."""
    ours, theirs = Sockets.pair()
    memory = Shared.create()
    link = Link(subprocess.Popen(["true"]), ours, Shared(memory))
    os.close(memory)
    send_fds, failures = socket.send_fds, [number] * 3

    def failing(*arguments: Any) -> int:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return send_fds(*arguments)

    monkeypatch.setattr(socket, "send_fds", failing)
    try:
        link.tell_rows(1 << 40, 7, b"the piece")

        message, (fd,), *_ = socket.recv_fds(theirs.messages, messages.MAX_BYTES, 1)
        assert messages.PIECE.unpack(message) == (Kind.ROWS, 0, 1 << 40, 7)
        assert os.pread(fd, 100, 0) == b"the piece"
        os.close(fd)
        assert not failures
    finally:
        theirs.close()
        link.close()


def test_sockets_have_room_for_the_longest_messages() -> None:
    ours, theirs = Sockets.pair()
    try:
        for here, there in zip(ours, theirs, strict=True):
            message = bytes(messages.longest_message(here))
            assert len(message) > 2 * messages.MAX_BYTES
            here.send(message)
            assert len(there.recv(1 << 21)) == len(message)
    finally:
        ours.close()
        theirs.close()


@pytest.fixture
def mount(mount: Remountable) -> Remountable:
    mount.mount("--channel", "on", "--freeze-delay", "manual")
    return mount


def test_directory_is_listed_by_who_has_much_room(mount: Remountable, tmp_path: Path) -> None:
    """As much as the kernel lets a program ask for at once: more than a message has."""
    directory = mount.path / "listed"
    directory.mkdir()
    names = {f"a name that is long enough {number}" for number in range(MANY)}
    for name in names:
        (directory / name).touch()

    listing = subprocess.run(
        [sys.executable, "-c", LIST, str(directory)],
        capture_output=True,
        text=True,
        timeout=LATE_S,
    )
    assert listing.returncode == 0, listing.stderr
    assert sorted(listing.stdout.splitlines()) == sorted(names | {".", ".."})
