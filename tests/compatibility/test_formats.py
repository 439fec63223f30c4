"""What is on the disk changes its form only with its version, and a newer one is left alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dserverfs.base.errors import UsageError
from dserverfs.base.model import BackendURI, Dataset
from dserverfs.catalogue import manifest_index, offline
from dserverfs.reading.cache import block_keys, maintenance, pins
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.cache.blocks import MemoryBlock
from dserverfs.server import datadir
from dserverfs.server.database import upgrading
from dserverfs.server.datadir import DataDirectory
from dserverfs.writing.edits import journal
from dserverfs.writing.edits.journal import EditSession, Note, all_unsent, root_of
from dserverfs.writing.staging import sealing, states
from dserverfs.writing.staging.area import Staging
from tests.compatibility import released
from tests.support.servers import ServerHandle

NEWER = 99
DESCRIPTION = released.DATA / "formats.json"
BASE_URI = BackendURI("s3://datasets")


def tables(path: Path) -> dict[str, str]:
    """Return what SQLite was told to make, by name."""
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: " ".join(sql.split()) for name, sql in rows}
    finally:
        connection.close()


def fields(record: type[Any]) -> dict[str, str]:
    return {field.name: str(field.type) for field in dataclasses.fields(record)}


def digests(directory: Path) -> dict[str, str]:
    """Return what must not change below a directory."""
    return {
        str(path.relative_to(directory)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("lock", "names.lock")
    }


def a_dataset() -> Dataset:
    uuid = "11111111-2222-3333-4444-555555555555"
    return Dataset.from_json(
        {
            "uuid": uuid,
            "uri": f"{BASE_URI}/{uuid}",
            "base_uri": BASE_URI,
            "name": "a-dataset",
            "creator_username": "grumpy",
            "frozen_at": 1600000000.0,
            "number_of_items": 1,
            "size_in_bytes": 1,
        }
    )


def staging(directory: Path, server: ServerHandle) -> tuple[object, object]:
    area = Staging(directory, "server").open()
    staged = area.create(BASE_URI, "a-dataset", "grumpy")
    (staged.tree / "item").write_bytes(b"item")
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
    area.close()
    head, item, end = (staged.directory / "sealed").read_text().splitlines()
    return states.FORMAT, {
        "files": sorted(path.name for path in staged.directory.iterdir()),
        "state": [*json.loads((staged.directory / "state").read_text())],
        "states": [state.value for state in states.State],
        "sealed": [*json.loads(head + "]}")],
        "sealed item": [type(value).__name__ for value in json.loads(item)],
        "sealed end": end,
        "hashes": tables(staged.directory / "hashes"),
    }


def edits(directory: Path, server: ServerHandle) -> tuple[object, object]:
    return journal.FORMAT, {"note": fields(Note), "dataset": fields(Dataset)}


def cache(directory: Path, server: ServerHandle) -> tuple[object, object]:
    blocks = BlockCache(directory / "blocks")
    blocks.open()
    blocks.close()
    return block_keys.FORMAT_VERSION, {
        "key": block_keys.prefix_of("ITEM"),
        "tables": tables(directory / "blocks/cache.db"),
    }


def pinned(directory: Path, server: ServerHandle) -> tuple[object, object]:
    record = pins.Pins(directory)
    record.add("dserver://server/s3/b/u", "a-dataset", [])
    record.close()
    return pins.FORMAT, tables(directory / "pins.db")


def manifests(directory: Path, server: ServerHandle) -> tuple[object, object]:
    return manifest_index.FORMAT_VERSION, [manifest_index.SCHEMA, manifest_index.NAME_INDEX]


def answers(directory: Path, server: ServerHandle) -> tuple[object, object]:
    return offline.KEPT_FORMAT, {"dataset": fields(Dataset)}


def server_data(directory: Path, server: ServerHandle) -> tuple[object, object]:
    return f"{datadir.VERSION}, tables {upgrading.head()}", {
        "files": [path.name for path in sorted(server.data.iterdir()) if path.name in _FILES],
        "ports": sorted(json.loads((server.data / "store/ports.json").read_text())),
        "tables": tables(server.data / "dserver.sqlite"),
    }


# Of a server's directory; others come and go.
_FILES = {
    *("dserver.sqlite", "jwt_private.pem", "lock", "password", "secret_key", "store", "token"),
    *("username", "version"),
}
FORMATS = [staging, edits, cache, pinned, manifests, answers, server_data]


@pytest.mark.parametrize("described", FORMATS, ids=lambda function: function.__name__)
def test_format_is_that_of_its_version(
    described: Callable[[Path, ServerHandle], tuple[object, object]],
    tmp_path: Path,
    server: ServerHandle,
) -> None:
    version, found = described(tmp_path, server)
    known = json.loads(DESCRIPTION.read_text())[described.__name__]

    assert found == known.get(str(version)), (
        f"{described.__name__} changed: give it a new version, enter that into {DESCRIPTION.name}"
        " beside the others, and let the kept data of the released versions be read"
    )


# A newer version's, of which nothing is known but that it says so.


@pytest.mark.expects_log("another version of dserverfs; what is in .* is kept")
def test_staged_dataset_of_a_newer_version_is_told_and_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    area = Staging(tmp_path, "server").open()
    staged = area.create(BASE_URI, "a-dataset", "grumpy")
    (staged.tree / "item").write_bytes(b"item")
    area.close()
    state = staged.directory / "state"
    state.write_text(json.dumps({"format": NEWER, "everything": "else"}))
    (staged.directory / "of-that-version").write_bytes(b"unknown")
    before = digests(tmp_path)

    later = Staging(tmp_path, "server").open()
    shown = later.datasets(BASE_URI)
    later.create(BASE_URI, "another", "grumpy").discard()
    later.close()

    assert shown == []
    assert [*later.unusable(BASE_URI)] == [staged.directory]
    assert digests(tmp_path) == before


@pytest.mark.expects_log("only a newer dserverfs can send", "cannot be read.*another version")
def test_changes_of_a_newer_version_are_told_and_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    root = root_of(tmp_path, "server")
    old = EditSession(root)
    old.open()
    content = old.new_file(b"theirs")
    old.note(content, Note(a_dataset(), "README.yml", is_complete=True, changed_at=1.0))
    old.close()
    session = content.parent
    note = session / f"{content.name}.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "format": NEWER}))
    (session / "of-that-version").write_bytes(b"unknown")
    before = digests(tmp_path)

    later = EditSession(root)
    later.open()
    taken = later.take_over(lambda note: True)
    later.close()

    assert taken == []
    assert [*all_unsent(tmp_path)] == []
    assert digests(tmp_path) == before


def test_blocks_of_a_newer_version_are_neither_read_nor_dropped(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    blocks = BlockCache(tmp_path / "blocks")
    blocks.open()
    key, content = block_keys.BlockKey("item", 0), b"of a newer version"
    blocks.store([(key, MemoryBlock(content))])
    of_newer = key.as_text().replace(f"{block_keys.FORMAT_VERSION}:", f"{NEWER}:", 1)
    of_older = key.as_text().replace(f"{block_keys.FORMAT_VERSION}:", "1:", 1)
    blocks.close()
    database = sqlite3.connect(tmp_path / "blocks/cache.db")
    try:
        with database:
            database.execute("UPDATE Cache SET key = ?, tag = x'00'", (of_newer,))
            database.execute(
                "INSERT INTO Cache (key, raw, store_time, access_time, access_count, tag, size,"
                " mode, value) SELECT ?, raw, store_time, access_time, access_count, tag, size,"
                " mode, value FROM Cache",
                (of_older,),
            )
    finally:
        database.close()

    later = BlockCache(tmp_path / "blocks")
    later.open()
    loaded = later.load(key, len(content))
    result = maintenance.check(later, lambda done, total: None)
    assert later.table is not None
    left = [*later.table.all_keys()]
    later.close()

    assert loaded is None
    assert result.blocks == 1  # the older version's
    assert left == [of_newer]


def test_server_s_directory_of_a_newer_version_is_refused_as_it_is(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data")
    with directory.locked():
        directory.secret_key()
    (directory.path / "version").write_text(f"dserverfs server {NEWER}\n")
    (directory.path / ".of-that-version.new").write_bytes(b"unknown")
    before = digests(directory.path)

    for use in (directory.locked, directory.shared):
        with pytest.raises(UsageError, match=f"holds 'dserverfs server {NEWER}'"), use():
            pass

    assert digests(directory.path) == before
