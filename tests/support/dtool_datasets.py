"""Real local dtool datasets for tests, made with dtoolcore."""

from __future__ import annotations

import random
from pathlib import Path

import dtoolcore

from dserverfs.base.items import BLOCK_SIZE

README = "---\ndescription: made for tests\nünïcödé: ja\n"

# Every edge of a block, names that tools stumble over, nested directories.
SIZES = {
    "empty": 0,
    "one-byte": 1,
    "block-1.bin": BLOCK_SIZE - 1,
    "block.bin": BLOCK_SIZE,
    "block+1.bin": BLOCK_SIZE + 1,
    "large/five-blocks.bin": 5 * BLOCK_SIZE + 4321,
    "nested/a/b/c/deep.txt": 300,
    "names/with space.txt": 10,
    "names/ünïcödé 文字.txt": 11,
    "names/quote'\"s": 12,
    "names/100%25.txt": 13,
    "names/new\nline": 14,
    "names/-rf": 15,
    "names/" + "long" * 60: 16,
}


def content_of(relpath: str, size: int) -> bytes:
    """Return bytes that differ from item to item and are the same in every run."""
    return random.Random(relpath).randbytes(size)


def make_dataset(
    parent: Path, name: str, items: dict[str, bytes], *, uuid: str | None = None
) -> Path:
    """Make and freeze a dataset with a tag, an annotation and an overlay; return its directory."""
    admin = dtoolcore.generate_admin_metadata(name, creator_username="tester")
    if uuid is not None:
        admin["uuid"] = uuid
    proto = dtoolcore.generate_proto_dataset(admin, base_uri=f"file://{parent}")
    proto.create()
    proto.put_readme(README)
    scratch = parent / f"{name}.scratch"
    for relpath, content in items.items():
        scratch.write_bytes(content)
        proto.put_item(str(scratch), relpath)
    scratch.unlink(missing_ok=True)
    proto.put_tag("testing")
    proto.put_annotation("answer", {"value": 42, "text": "ü"})
    proto.freeze()
    dataset = dtoolcore.DataSet.from_uri(proto.uri)
    dataset.put_overlay("odd", {key: hash(key) % 2 == 1 for key in dataset.identifiers})
    return parent / name


def make_varied_dataset(parent: Path, name: str) -> Path:
    return make_dataset(
        parent, name, {relpath: content_of(relpath, size) for relpath, size in SIZES.items()}
    )
