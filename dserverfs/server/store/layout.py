"""The layout of a dataset in a bucket: its keys, and the texts dtool-s3 puts beside the items.

Pure. The layout is dtool-s3's (0.14.1), so that its broker reads datasets of this
server and the other way round.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# dtool-s3 takes handles as base64 only if this parses as 0.14.0 or later.
_BROKER_VERSION = "0.14.1"

REGISTRATION_PREFIX = "dtool-"

README_TXT = """README
======
This is a Dtool dataset stored in S3 accessible storage.

Content provided during the dataset creation process
----------------------------------------------------

Dataset registration key (at top level of bucket): dtool-$UUID

Where UUID is the unique identifier for the dataset. It contains the prefix of
the dataset's keys and is empty if the dataset is stored in the top level of the
bucket. It is used to aid fast enumeration of unique datasets in the bucket.

The UUID is used as a prefix for all other keys in the dataset.

Dataset descriptive metadata: $UUID/README.yml
Dataset items prefixed by: $UUID/data/

The item identifiers are used to name the files using the data prefix.

An item identifier is the sha1sum hexdigest of the relative path
used to represent the file on traditional file system disk.

Automatically generated files and directories
---------------------------------------------

This file: $UUID/README.txt
Administrative metadata describing the dataset: $UUID/dtool
Structural metadata describing the dataset: $UUID/structure.json
Structural metadata describing the data items: $UUID/manifest.json
Per item descriptive metadata prefixed by: $UUID/overlays/
Dataset key/value pairs metadata prefixed by: $UUID/annotations/
Dataset tags metadata: $UUID/tags/
Hashes of the blocks of large items (of dserverfs): $UUID/block-hashes
"""


@dataclass
class DatasetKeys:
    """The keys of one dataset in its bucket."""

    prefix: str
    uuid: str

    def __post_init__(self) -> None:
        # By this key dtool-s3 lists the dataset; it is always at the top of the bucket.
        self.registration = REGISTRATION_PREFIX + self.uuid
        self.all = f"{self.prefix}{self.uuid}/"  # the prefix of all others
        self.admin_metadata = f"{self.all}dtool"
        self.readme = f"{self.all}README.yml"
        # For the README of an upload, whose signed URL outlives the freeze. Unlike an item's,
        # that URL pins no digest. dtool-s3 looks at no such key.
        self.uploaded_readme = f"{self.all}uploaded/README.yml"
        # The hashes of its blocks, see `base/block_hashes`; those of an upload as its README.
        self.block_hashes = f"{self.all}block-hashes"
        self.uploaded_block_hashes = f"{self.all}uploaded/block-hashes"
        self.readme_txt = f"{self.all}README.txt"
        self.structure = f"{self.all}structure.json"
        self.manifest = f"{self.all}manifest.json"
        # Prefixes.
        self.items = f"{self.all}data/"
        self.overlays = f"{self.all}overlays/"
        self.annotations = f"{self.all}annotations/"
        self.tags = f"{self.all}tags/"

    def readme_backup(self, timestamp: str) -> str:
        """Return the key under which dtoolcore keeps a README that was replaced."""
        return f"{self.readme}-{timestamp}"

    def item(self, identifier: str) -> str:
        return self.items + identifier

    def overlay(self, name: str) -> str:
        return f"{self.overlays}{name}.json"

    def annotation(self, name: str) -> str:
        return f"{self.annotations}{name}.json"

    def tag(self, tag: str) -> str:
        return self.tags + tag


def json_text(value: Any) -> bytes:
    """Return JSON as dtoolcore writes it."""
    return json.dumps(value, indent=2, sort_keys=True).encode()


def structure_json(uuid: str) -> str:
    return json.dumps(
        {
            "dataset_registration_key": f"dtool-{uuid}",
            "data_key_infix": "data",
            "fragment_key_infix": "fragments",
            "overlays_key_infix": "overlays",
            "annotations_key_infix": "annotations",
            "tags_key_infix": "tags",
            "structure_key_suffix": "structure.json",
            "dtool_readme_key_suffix": "README.txt",
            "dataset_readme_key_suffix": "README.yml",
            "manifest_key_suffix": "manifest.json",
            "admin_metadata_key_suffix": "dtool",
            "http_manifest_key": "http_manifest.json",
            "storage_broker_version": _BROKER_VERSION,
        },
        indent=2,
        sort_keys=True,
    )


def handle_of(relpath: str) -> str:
    """Return the value of `x-amz-meta-handle`: S3 metadata is ASCII, relpaths are not."""
    return base64.b64encode(relpath.encode()).decode()


def content_md5(md5: str) -> str:
    """Return the value of the header of that name."""
    return base64.b64encode(bytes.fromhex(md5)).decode()


def item_headers(relpath: str, md5: str) -> Mapping[str, str]:
    """Return the headers that a signed URL pins for the PUT of an item."""
    return {
        "Content-MD5": content_md5(md5),
        "x-amz-meta-handle": handle_of(relpath),
        "x-amz-meta-checksum": md5,
    }


def metadata_size(relpath: str) -> int:
    """Return the size of an item's user metadata as S3 counts it (names and values)."""
    return len("handle") + len(handle_of(relpath)) + len("checksum") + 32
