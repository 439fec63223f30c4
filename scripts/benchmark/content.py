"""Datasets with content that nobody can guess or compress, the same in every run."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import dtoolcore
from dtoolcore.utils import generate_identifier

from dserverfs.base.local_dataset import LocalDataset

CHUNK_BYTES = 1024 * 1024


def make_dataset(parent: Path, name: str, sizes: Mapping[str, int]) -> LocalDataset:
    """Write a frozen dataset of items with these relpaths and sizes in bytes.

    In dtool's layout, but without dtoolcore's copy of each item: 5,000 items take
    it half a minute.
    """
    directory = parent / name
    (directory / "data").mkdir(parents=True)
    (directory / ".dtool").mkdir()
    now = time.time()
    items = {}
    for relpath, size in sizes.items():
        md5 = hashlib.md5()
        path = directory / "data" / relpath
        with path.open("wb") as file:
            for chunk in _random_chunks(relpath, size):
                md5.update(chunk)
                file.write(chunk)
        items[generate_identifier(relpath)] = {
            "relpath": relpath,
            "size_in_bytes": size,
            "hash": md5.hexdigest(),
            "utc_timestamp": now,
        }
    admin = dtoolcore.generate_admin_metadata(name, creator_username="benchmark")
    admin |= {"type": "dataset", "frozen_at": now}
    manifest = {
        "dtoolcore_version": dtoolcore.__version__,
        "hash_function": "md5sum_hexdigest",
        "items": items,
    }
    (directory / ".dtool" / "dtool").write_text(json.dumps(admin))
    (directory / ".dtool" / "manifest.json").write_text(json.dumps(manifest))
    (directory / "README.yml").write_text("---\ndescription: made by scripts/bench\n")
    return LocalDataset.read(directory)


def _random_chunks(seed: str, size: int) -> Iterator[bytes]:
    source = random.Random(seed)
    for start in range(0, size, CHUNK_BYTES):
        yield source.randbytes(min(CHUNK_BYTES, size - start))
