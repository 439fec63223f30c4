"""Datasets that are frozen in any way have the hashes of the blocks that were written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import requests

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.writing.staging.incremental_hash import STEP_BYTES
from tests.support.accounts import Account
from tests.support.block_hashes import object_of
from tests.support.dtool_commands import dtool_of
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.servers import ServerHandle, encoded
from tests.support.staged_datasets import freeze

pytest_plugins = ["tests.support.mount_fixtures"]

LARGE = 2 * STEP_BYTES + BLOCK_SIZE + 1  # hashed while it is written
SIZES = {
    **{"empty": 0, "block-1": BLOCK_SIZE - 1, "block": BLOCK_SIZE, "block+1": BLOCK_SIZE + 1},
    "nested/two": 2 * BLOCK_SIZE,
}


def served(server: ServerHandle, uri: str) -> bytes:
    """Return the block hashes of a dataset, by a URI of any kind."""
    uri = f"{server.backend_uri}/{uri.rpartition('/')[2]}"
    urls = server.get(f"/signed-urls/dataset/{encoded(uri)}?items=false").json()
    return requests.get(urls["block_hashes_url"], timeout=30).content


def write_at_once(path: Path, content: bytearray) -> None:
    path.write_bytes(content)


def append_by_two(path: Path, content: bytearray) -> None:
    path.write_bytes(content[: STEP_BYTES + 17])
    with path.open("ab") as file:
        file.write(content[STEP_BYTES + 17 :])


def rewrite_in_the_middle(path: Path, content: bytearray) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        file.seek(BLOCK_SIZE - 5)
        file.write(b"0123456789")
    content[BLOCK_SIZE - 5 : BLOCK_SIZE + 5] = b"0123456789"


def write_in_odd_pieces(path: Path, content: bytearray) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), 777_777):
            file.write(content[start : start + 777_777])


def cut_short(path: Path, content: bytearray) -> None:
    path.write_bytes(content)
    del content[BLOCK_SIZE + 3 :]
    os.truncate(path, len(content))


def grow(path: Path, content: bytearray) -> None:
    path.write_bytes(content)
    content += bytes(BLOCK_SIZE)
    os.truncate(path, len(content))


WAYS = [write_at_once, append_by_two, rewrite_in_the_middle, write_in_odd_pieces, cut_short, grow]


def test_mount_and_command_freeze_with_the_hashes_of_what_was_written_last(
    base: Path, current_user: Account, server: ServerHandle
) -> None:
    directory = base / "block-hashes-of-a-mount"
    (directory / "nested").mkdir(parents=True)
    contents = {name: content_of(name, size) for name, size in SIZES.items()}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    for way in WAYS:
        written = bytearray(random.Random(way.__name__).randbytes(LARGE))
        way(directory / way.__name__, written)
        contents[way.__name__] = bytes(written)

    uri = freeze(current_user, directory)

    assert served(server, uri) == object_of(contents)


def test_dtool_freezes_with_them(server: ServerHandle, tmp_path: Path) -> None:
    dtool = dtool_of(tmp_path, server.token)
    contents = {"two": content_of("two", 2 * BLOCK_SIZE), "small": b"small"}
    local = make_dataset(tmp_path, "block-hashes-of-dtool", contents)

    copied = dtool.output("cp", "-q", local, server.base_uri).strip()
    made = dtool.output("create", "-q", "block-hashes-added", server.base_uri).strip()
    dtool.output("add", "item", local / "data/two", made, "two")
    dtool.output("freeze", made)

    assert served(server, copied) == object_of(contents)
    assert served(server, made) == object_of({"two": contents["two"]})
