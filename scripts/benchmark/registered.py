"""Datasets that the dserver knows and the store does not hold: to be listed, not to be read.

They are registered as a dserver's operator does it (PUT /uris), with a manifest of
items that nobody uploaded: a million objects would take an hour.
"""

from __future__ import annotations

import hashlib
import json
import urllib.parse
import uuid

import requests
from dtoolcore.utils import generate_identifier

from benchmark.lab import Lab

TIMEOUT_S = 600
ITEM_BYTES = 16
FROZEN_AT = "1700000000.0"


def name_of(number: int) -> str:
    return f"item-{number:07}.txt"


def register(lab: Lab, bucket: str, name: str, number_of_items: int) -> str:
    """Register a dataset of that many items in one directory; return its dserver URI."""
    server = lab.base_uri.split("/")[2]
    identity = str(uuid.uuid4())
    uri = f"s3://{bucket}/{identity}"
    names = [name_of(number) for number in range(number_of_items)]
    items = {
        generate_identifier(name): {
            "relpath": name,
            "size_in_bytes": ITEM_BYTES,
            "hash": hashlib.md5(name.encode()).hexdigest(),
            "utc_timestamp": 1.6e9,
        }
        for name in names
    }
    manifest = {
        "items": items,
        "hash_function": "md5sum_hexdigest",
        "dtoolcore_version": "3.19.0",
    }
    _put(
        lab,
        f"uris/{_quoted(uri)}",
        {
            "uuid": identity,
            "base_uri": f"s3://{bucket}",
            "uri": uri,
            "name": name,
            "type": "dataset",
            "readme": "---\n",
            "manifest": manifest,
            "creator_username": "benchmark",
            "frozen_at": FROZEN_AT,
            "created_at": FROZEN_AT,
            "annotations": {},
            "tags": [],
            "number_of_items": number_of_items,
            "size_in_bytes": ITEM_BYTES * number_of_items,
        },
    )
    return f"dserver://{server}/s3/{bucket}/{identity}"


def add_base_uri(lab: Lab, bucket: str) -> str:
    """Make a base URI that the lab's user may read and register in; return its dserver URI."""
    username = (lab.directory / "server" / "username").read_text().strip()
    rights = {f"users_with_{kind}_permissions": [username] for kind in ("search", "register")}
    _put(lab, f"base-uris/{_quoted(f's3://{bucket}')}", rights)
    return f"dserver://{lab.base_uri.split('/')[2]}/s3/{bucket}"


def _put(lab: Lab, path: str, body: object) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {lab.token_file.read_text().strip()}"
        session.headers["Content-Type"] = "application/json"
        url = f"http://{lab.base_uri.split('/')[2]}/{path}"
        session.put(url, data=json.dumps(body), timeout=TIMEOUT_S).raise_for_status()


def _quoted(uri: str) -> str:
    return urllib.parse.quote(uri, safe="")
