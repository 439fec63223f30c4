"""Making the index of a manifest, by a short-lived process if the manifest is large.

Used by the catalogue. The process (`python -m dserverfs.catalogue.manifest_indexing INDEX`)
reads the manifest from its standard input while it is being downloaded, so that a
million items neither block the daemon nor stay in its memory.

An index is written under another name, sealed, synced and renamed when the manifest has
ended, so every index on disk is whole. A manifest that breaks off is no JSON, and
leaves no index.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from dserverfs.base import child_processes
from dserverfs.base.block_hashes import ManifestDigest
from dserverfs.base.durable_files import left_beside, sync_open, written_beside
from dserverfs.base.errors import DserverfsError, LocalDiskError, ProtocolError
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.local_files import remove_if_possible
from dserverfs.base.sealed_files import append_seal
from dserverfs.catalogue.manifest_index import FORMAT_VERSION, NAME_INDEX, SCHEMA
from dserverfs.catalogue.manifest_rows import ManifestTree
from dserverfs.remote.manifest_parsing import ManifestStream

# Larger manifests are indexed by a process of their own; it starts in 50 ms, as
# long as 2 MiB take to be indexed here.
IN_PROCESS_BYTES = 2 * 1024 * 1024
# So are those of many directories, which take 300 bytes of memory each for 2 of a manifest.
IN_PROCESS_DIRECTORIES = 100_000
# Limit of that process: 10 million items. A manifest that needs more is refused.
MAX_MEMORY_BYTES = 4 * 1024**3
# After the last byte; a million items take 6 s.
INDEXING_TIMEOUT_S = 300.0
_PIECE_BYTES = 1024 * 1024
_EXIT_LOCAL_DISK = 3


@contextlib.contextmanager
def local_part() -> Iterator[None]:
    """Turn errors of the operating system and of SQLite into LocalDiskError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise LocalDiskError(str(error)) from error


def build(pieces: Iterable[bytes], index_path: Path) -> None:
    """Index the manifest of which these are the pieces.

    Raises ProtocolError if it is no manifest, LocalDiskError.
    """
    stream, tree = _parsed(pieces)
    with local_part(), written_beside(index_path) as (file, scratch):
        with contextlib.closing(sqlite3.connect(scratch)) as connection:
            _fill(connection, stream, tree)
        append_seal(scratch, index_path)
        sync_open(file)
        os.replace(scratch, index_path)


def build_in_memory(pieces: Iterable[bytes]) -> sqlite3.Connection:
    """Return an index that takes up about as much memory as the manifest; as `build`."""
    stream, tree = _parsed(pieces)
    with local_part():
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        _fill(connection, stream, tree)
    return connection


def _parsed(pieces: Iterable[bytes]) -> tuple[ManifestStream, ManifestTree]:
    stream, tree = ManifestStream(), ManifestTree()
    for piece in pieces:
        tree.add(stream.feed(piece))
    tree.add(stream.close())
    return stream, tree


def _fill(connection: sqlite3.Connection, stream: ManifestStream, tree: ManifestTree) -> None:
    connection.executescript(SCHEMA)
    connection.executemany("INSERT INTO node VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", tree.rows())
    connection.execute(NAME_INDEX)
    digest = ManifestDigest()
    places = _places_of_hashes(connection, digest)
    connection.executemany("INSERT INTO block_hashes VALUES (?, ?)", places)
    about = (
        FORMAT_VERSION,
        stream.hash_function,
        tree.number_of_items,
        tree.size_in_bytes,
        tree.unsafe,
        digest.head,
        digest.size_in_bytes,
    )
    connection.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, ?, ?)", about)
    connection.commit()


def _places_of_hashes(
    connection: sqlite3.Connection, digest: ManifestDigest
) -> Iterator[tuple[int, int]]:
    """Yield row and number of the first block hash of each item that has some."""
    last = ""
    for row, identifier, hash, size_in_bytes in connection.execute(
        "SELECT row, identifier, hash, size FROM node WHERE size > ? ORDER BY identifier",
        (BLOCK_SIZE,),
    ):
        if identifier != last:  # a manifest may name one twice
            yield row, digest.number_of_hashes
            digest.add(identifier, hash, size_in_bytes)
        last = identifier


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield the content of a file; raises LocalDiskError."""
    with local_part(), path.open("rb") as file:
        yield from _pieces(file)


class Indexing:
    """One manifest being indexed while it arrives; left without `finish`, there is no index.

    `write` blocks while the process is behind, `finish` until the index is there.
    """

    def __init__(self, index_path: Path) -> None:
        self._path = index_path
        self._held: list[bytes] = []  # as long as it may be a small one
        self._held_bytes = 0
        self._held_directories = 0  # at most
        self._process: subprocess.Popen[bytes] | None = None
        self._abandoned = False

    def __enter__(self) -> Indexing:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._close(self._process)

    def abandon(self) -> None:
        """Have `finish` raise ProtocolError soon; from any thread."""
        self._abandoned = True
        if self._process is not None:
            self._process.kill()

    def write(self, piece: bytes) -> None:
        """Index the next piece of the manifest."""
        if self._process is None:
            self._held.append(piece)
            self._held_bytes += len(piece)
            self._held_directories += piece.count(b"/")
            if (
                self._held_bytes > IN_PROCESS_BYTES
                or self._held_directories > IN_PROCESS_DIRECTORIES
            ):
                self._process = self._start()
                for held in self._held:
                    self._send(self._process, held)
                self._held.clear()
        else:
            self._send(self._process, piece)

    def finish(self) -> None:
        """Wait for the index; raises ProtocolError if the pieces are no manifest.

        LocalDiskError if it is, and there is no index all the same.
        """
        if self._process is None:
            build(self._held, self._path)
            return
        if self._abandoned:
            self._process.kill()
        try:
            _, errors = self._process.communicate(timeout=INDEXING_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise ProtocolError(
                f"indexing the manifest took over {INDEXING_TIMEOUT_S:.0f} s"
            ) from error
        if self._process.returncode != 0:
            said = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
            if self._process.returncode == _EXIT_LOCAL_DISK:
                raise LocalDiskError(said)
            raise ProtocolError(f"the manifest cannot be indexed: {said}")

    def _start(self) -> subprocess.Popen[bytes]:
        with local_part():
            return subprocess.Popen(
                child_processes.module_command(__spec__.name, str(self._path)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=child_processes.environment(),
            )

    def _send(self, process: subprocess.Popen[bytes], piece: bytes) -> None:
        assert process.stdin is not None
        # One that has ended says why, to `finish`.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(piece)

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for pipe in (process.stdin, process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # what was not sent
                pipe.close()
        if process.returncode < 0:  # killed before it could tidy up
            for scratch in left_beside(self._path, process.pid):
                remove_if_possible(scratch)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def main(arguments: Sequence[str]) -> int:
    """Index the manifest on the standard input into INDEX; the process `Indexing` starts."""
    (index_path,) = arguments
    gc.disable()  # a million items are no garbage: looking for it takes half of the time
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MAX_MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    try:
        build(_pieces(sys.stdin.buffer), Path(index_path))
    except LocalDiskError as error:
        print(error, file=sys.stderr)
        return _EXIT_LOCAL_DISK
    except DserverfsError as error:
        print(error, file=sys.stderr)
        return 1
    except MemoryError:
        print(f"it takes more than {MAX_MEMORY_BYTES} bytes of memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
