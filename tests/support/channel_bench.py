"""The channel with sockets in the place of the kernel's device, and a test for its daemon."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.checksums import checksums
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.mount.channel import messages, wire
from dserverfs.mount.channel.contents import packed
from dserverfs.mount.channel.messages import Kind, Shared, Sockets
from dserverfs.mount.channel.process import Channel
from dserverfs.mount.channel.rows import ROWS
from dserverfs.mount.channel.succession import Recipe, Succession
from dserverfs.reading.small_items import SMALL_BYTES
from tests.support.patience import LATE_S


class Answer(NamedTuple):
    unique: int
    errno: int
    data: bytes


class Outcome(NamedTuple):
    """What the channel sent, and to whom."""

    to: socket.socket
    message: bytes
    bench: Bench

    @property
    def answer(self) -> Answer | None:
        """What the kernel is answered."""
        return answer_in(self.message) if self.to is self.bench.kernel else None

    @property
    def passed(self) -> bytes | None:
        """What libfuse is given."""
        return self.message if self.to is self.bench.ours.libfuse else None

    @property
    def told(self) -> bytes | None:
        """What the daemon is told."""
        return self.message if self.to is self.bench.ours.messages else None


class Bench:
    """The channel in a thread, and all that is around it."""

    def __init__(
        self, directory: Path, recipe: Recipe | None = None, longest: int = 1 << 20
    ) -> None:
        """With a recipe another daemon is started when `die` ends the connections.

        The device refuses what is much longer than `longest`.
        """
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self.kernel, device):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, longest)
        self.ours, theirs = Sockets.pair()
        self._memory = Shared.create()
        self.shared = Shared(self._memory)
        # In the place of the first daemon's process, for `ours` are in this one.
        self._daemon = None if recipe is None else subprocess.Popen(["sleep", "infinity"])
        succession = None
        if self._daemon is not None:
            succession = Succession(self._memory, os.pidfd_open(self._daemon.pid))
        self.path = directory / "blocks"
        self.fault: BaseException | None = None
        self._channel = Channel(theirs, self.shared, succession)
        self._thread = threading.Thread(target=self._run, args=(theirs,), daemon=True)
        self._thread.start()
        with device:
            told = messages.DEVICE.pack(Kind.DEVICE, BLOCK_SIZE, SMALL_BYTES, messages.EVERYBODY)
            journal = os.memfd_create("journal")
            socket.send_fds(self.ours.messages, [told], [device.fileno(), journal])
            os.close(journal)
        if recipe is not None:
            self._serves(recipe)
        self.unique = 0  # of the last request
        self.touched: list[tuple[int, ...]] = []  # and what was damaged

    def await_touched(self, number: int) -> list[tuple[int, ...]]:
        """Return what was told of reads, when it is so many."""
        while len(self.touched) < number:
            message = readable(self.ours.messages).recv(messages.MAX_BYTES)
            self.touched.append(messages.TOUCHED.unpack(message))
        return self.touched

    def _run(self, theirs: Sockets) -> None:
        try:
            self._channel.run()
        except BaseException as error:  # noqa: BLE001 - told by `close`
            self.fault = error
        finally:
            self._channel.close()

    def close(self) -> None:
        # Not closed yet: a socket with unread answers would be another end than the device's.
        self.kernel.shutdown(socket.SHUT_RDWR)
        self.ours.end()
        self._end_daemon()
        self._thread.join(LATE_S)
        self.kernel.close()
        assert not self._thread.is_alive()
        os.close(self._memory)
        if self.fault is not None:
            raise self.fault

    def has_ended(self) -> bool:
        self._thread.join(LATE_S)
        return not self._thread.is_alive()

    # One daemon after the other

    def _serves(self, recipe: Recipe) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(recipe.packed())
            file.flush()
            said = messages.KIND.pack(Kind.SERVING)
            socket.send_fds(self.ours.messages, [said], [file.fileno()])

    def die(self) -> None:
        """End the connections without a word, and the process of the first daemon."""
        self.ours.end()
        self._end_daemon()

    def _end_daemon(self) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()

    def take_place(self, ends: Sockets, device: int, journal: int) -> bytes:
        """Be the next daemon, which has these ends; return what its libfuse is asked first."""
        self.ours = ends
        told = messages.DEVICE.pack(Kind.DEVICE, BLOCK_SIZE, SMALL_BYTES, messages.EVERYBODY)
        socket.send_fds(ends.messages, [told], [device, journal])
        return readable(ends.libfuse).recv(1 << 21)

    # The kernel

    def begin(self) -> None:
        """Begin the connection, which libfuse answers."""
        _, request = self.ask(wire.Opcode.INIT, 0, bytes(64))
        assert readable(self.ours.libfuse).recv(1 << 17) == request

    def ask(self, opcode: int, inode: int, body: bytes) -> tuple[int, bytes]:
        """Ask; return the number of the request, and all of it."""
        self.unique += 1
        length = wire.REQUEST.size + len(body)
        request = wire.REQUEST.pack(length, opcode, self.unique, inode, 0, 0, 0, 0, 0) + body
        self.kernel.send(request)
        return self.unique, request

    def read(self, inode: int, offset: int, size: int, handle: int = 1) -> Answer | None:
        """Return what the channel answers; None if it passes the request on as it is."""
        body = wire.READ.pack(handle, offset, size, 0, 0, 0, 0)
        unique, request = self.ask(wire.Opcode.READ, inode, body)
        while True:
            if readable(self.kernel, self.ours.messages) is self.kernel:
                answer = answer_in(self.kernel.recv(1 << 21))
                assert answer.unique == unique
                return answer
            message = self.ours.messages.recv(messages.MAX_BYTES)
            if messages.KIND.unpack_from(message)[0] == Kind.READ:
                assert message[messages.READ_AT :] == request
                return None
            is_damaged = messages.KIND.unpack_from(message)[0] == Kind.DAMAGED
            self.touched.append((messages.LOST if is_damaged else messages.TOUCHED).unpack(message))

    def outcome(self, *request: bytes) -> Outcome:
        """Send a request as it is; return what becomes of it."""
        self.kernel.send(b"".join(request))
        return self.next()

    def next(self, *to: socket.socket) -> Outcome:
        """Return what comes next, from the channel to any of some, or to whomever."""
        found = readable(*(to or (self.kernel, self.ours.libfuse, self.ours.messages)))
        return Outcome(found, found.recv(1 << 21), self)

    # The daemon

    def told(self) -> list[bytes]:
        """Return what the daemon was told before the last answer."""
        found = []
        while select.select([self.ours.messages], [], [], 0)[0]:
            found.append(self.ours.messages.recv(messages.MAX_BYTES))
        return found

    def tell_dataset(self, base: int) -> None:
        """Tell a dataset; it is in force."""
        self.ours.messages.send(messages.DATASET.pack(Kind.DATASET, 0, base))
        self.forget(0)

    def tell_rows(self, base: int, number: int, piece: bytes) -> None:
        """Tell a piece; it is in force."""
        with tempfile.TemporaryFile() as file:
            file.write(piece)
            file.flush()
            told = messages.PIECE.pack(Kind.ROWS, 0, base, number)
            socket.send_fds(self.ours.messages, [told], [file.fileno()])
        self.forget(0)

    def tell_no_rows(self, base: int, number: int, errno: int) -> None:
        self.ours.messages.send(messages.PIECE.pack(Kind.NO_ROWS, errno, base, number))

    def tell_contents(
        self, base: int, contents: Sequence[tuple[int, bytes]], covered: int = ROWS
    ) -> None:
        """Tell contents, each of a row, as if the first rows had been asked for; it is in force."""
        told = messages.CONTENTS.pack(Kind.CONTENTS, covered, base, 0, ROWS, 0)
        with tempfile.TemporaryFile() as file:
            file.write(packed(contents))
            file.flush()
            socket.send_fds(self.ours.messages, [told], [file.fileno()])
        self.forget(0)

    def take_back(self, base: int) -> None:
        self._in_force(messages.DATASET.pack(Kind.TAKE_BACK, 0, base))

    def let_open(self, *, opens: bool) -> None:
        self._in_force(messages.OPENS.pack(Kind.OPENS, opens))

    def _in_force(self, message: bytes) -> None:
        self.ours.messages.send(message)
        assert readable(self.ours.forgotten) is self.ours.forgotten
        assert self.ours.forgotten.recv(messages.MAX_BYTES) == message

    def tell(self, inode: int, index: int, number: int, length: int, start: int) -> None:
        """Tell one block, with the checksums that it has."""
        self.tell_all(inode, [(index, number, length, start)])

    def tell_all(self, inode: int, blocks: Sequence[tuple[int, int, int, int]]) -> None:
        """Tell blocks of one file in one message: the index, number, length and start of each."""
        content = self.path.read_bytes()
        message = [messages.BLOCKS.pack(Kind.BLOCKS, len(blocks), inode)]
        for index, number, length, start in blocks:
            message.append(messages.BLOCK.pack(0, length, index, number, start))
        message += [checksums(content[start : start + length]) for _, _, length, start in blocks]
        with self.path.open("rb") as file:
            socket.send_fds(self.ours.messages, [b"".join(message)], [file.fileno()])

    def lose(self, inode: int, index: int, number: int) -> None:
        self.ours.messages.send(messages.LOST.pack(Kind.LOST, 0, inode, index, number))

    def forget(self, inode: int) -> None:
        self._in_force(messages.FORGET.pack(Kind.FORGET, 0, inode))


def readable(*sockets: socket.socket) -> socket.socket:
    """Return the first socket from which something can be read."""
    found, _, _ = select.select(sockets, [], [], LATE_S)
    assert found, "nothing comes"
    first: socket.socket = found[0]
    return first


def answer_in(reply: bytes) -> Answer:
    length, errno, unique = wire.REPLY.unpack_from(reply)
    assert length == len(reply)
    return Answer(unique, -errno, reply[wire.REPLY.size :])


@contextlib.contextmanager
def running(recipe: Recipe | None = None, longest: int = 1 << 20) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), recipe, longest)
        try:
            yield bench
        finally:
            bench.close()
