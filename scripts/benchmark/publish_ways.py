"""Ways in which one process publishes a directory; started by `benchmark.publishing`.

python -m benchmark.publish_ways uploader|sequential DIRECTORY BASE_URI TOKEN_FILE
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import uuid
from pathlib import Path

import requests

from dserverfs.base.disk_tables import ItemTable
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import DserverURI
from dserverfs.client import Client
from dserverfs.settings import TOKEN_FILE, Settings
from dserverfs.writing.staging.file_hashes import Hashes


def describe(directory: Path, hashes: Hashes) -> LocalDataset:
    """Return the files below a directory as a frozen dataset."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    digests = hashes.all_of(files)
    items = ItemTable()
    for file in files:
        relpath = str(file.relative_to(directory))
        status = file.stat()
        mtime_ns = status.st_mtime_ns
        items.add(relpath, status.st_size, digests[file], mtime_ns, mtime_ns / 1e9)
    admin = {
        "uuid": str(uuid.uuid4()),
        "name": "published",
        "creator_username": "benchmark",
        "frozen_at": time.time(),
    }
    return LocalDataset(
        admin,
        b"",
        "md5sum_hexdigest",
        items,
        lambda item: directory / item.relpath,
        [],
        {},
        {},
        lambda: contextlib.nullcontext(hashes.known_blocks),
    )


def with_uploader(client: Client, dataset: LocalDataset, base_uri: str) -> str:
    return client.uploader.upload(dataset, base_uri)


def sequentially(client: Client, dataset: LocalDataset, base_uri: str) -> str:
    """Do as dtool's own dserver broker does: one PUT after the other, each on a new connection."""
    uploads = client.resolver.uploads
    urls = uploads.start(base_uri, dataset.description(), dataset.described_items())
    for item in dataset.items.values():
        target = urls.items[item.identifier]
        with dataset.path_of(item).open("rb") as file:
            body = file if item.size_in_bytes else b""
            response = requests.put(
                target.url, data=body, headers=dict(target.headers), timeout=300
            )
        response.raise_for_status()
    requests.put(urls.readme.url, data=dataset.readme, timeout=60).raise_for_status()
    uploads.complete(urls.uri, len(dataset.items))
    return urls.uri


def main(way: str, directory: Path, base: str, token_file: str) -> None:
    uri = DserverURI.parse(base)
    assert uri.base_uri is not None
    publish = {"uploader": with_uploader, "sequential": sequentially}[way]
    settings = Settings({TOKEN_FILE: token_file}, {})
    with (
        tempfile.TemporaryDirectory() as scratch,
        Hashes(Path(scratch) / "hashes.db", directory) as hashes,
        Client(uri.server, settings, cache_directory=Path(scratch) / "cache") as client,
    ):
        print(publish(client, describe(directory, hashes), uri.base_uri).rpartition("/")[2])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
