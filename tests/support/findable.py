"""Datasets to be found, on the real server and on the fake one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dserverfs.base.conditions import AnnotationIs, Conditions
from tests.support.quirky_server import BASE_URI, QuirkyServer
from tests.support.servers import ServerHandle, new_uuid, upload

DATASETS: Mapping[str, Mapping[str, Any]] = {
    "found-alpha": {
        "contents": {"run/plate.csv": b"alpha", "same": b"x"},
        "readme": b"yeast on plates",
        "creator_username": "grumpy",
        "frozen_at": 3_000_000.25,
        "tags": ["x", "y"],
        "annotations": {"scope": "big", "number": 5, "flag": True},
    },
    "found-beta": {
        "contents": {"image.tif": b"beta", "copy/of/same": b"x"},
        "readme": b"annotated",
        "creator_username": "happy",
        "frozen_at": 2_000_000.25,
        "tags": ["x"],
        "annotations": {"scope": "small"},
    },
    "found-gamma": {
        "contents": {"image.tif": b"gamma"},
        "readme": b'says "light sheet" here',
        "creator_username": "grumpy",
        "frozen_at": 1_000_000.25,
        "tags": [],
        "annotations": {},
    },
}
ALPHA, BETA, GAMMA = DATASETS


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# What is found by each, the newest first.
EXAMPLES: Mapping[str, tuple[Conditions, list[str]]] = {
    "everything": (Conditions(), [ALPHA, BETA, GAMMA]),
    "a tag": (Conditions(tags=("x",)), [ALPHA, BETA]),
    "two tags": (Conditions(tags=("x", "y")), [ALPHA]),
    "no such tag": (Conditions(tags=("X",)), []),
    "a creator": (Conditions(creators=("grumpy",)), [ALPHA, GAMMA]),
    "two creators": (Conditions(creators=("grumpy", "happy")), []),
    "a word": (Conditions(texts=("yeast",)), [ALPHA]),
    "any of two words": (Conditions(texts=("yeast annotated",)), [ALPHA, BETA]),
    "a phrase": (Conditions(texts=('"light sheet"',)), [GAMMA]),
    "no such phrase": (Conditions(texts=('"sheet light"',)), []),
    "two texts": (Conditions(texts=("found", "grumpy")), [ALPHA, GAMMA]),
    "a word of an annotation": (Conditions(texts=("small",)), [BETA]),
    "an annotation": (Conditions(annotations=(AnnotationIs("scope"),)), [ALPHA, BETA]),
    "a value": (Conditions(annotations=(AnnotationIs("scope", "big"),)), [ALPHA]),
    "a number": (Conditions(annotations=(AnnotationIs("number", "5"),)), [ALPHA]),
    "no such value": (Conditions(annotations=(AnnotationIs("flag", "1"),)), []),
    "a pattern": (Conditions(names=("found-[ab]*",)), [ALPHA, BETA]),
    "a later date": (Conditions(frozen_from=2_000_000.0), [ALPHA, BETA]),
    "an earlier date": (Conditions(frozen_before=2_000_000.0), [GAMMA]),
    "a hash": (Conditions(hashes=(md5(b"x"),)), [ALPHA, BETA]),
    "two hashes": (Conditions(hashes=(md5(b"x"), md5(b"beta"))), [BETA]),
    "no such hash": (Conditions(hashes=("0" * 32,)), []),
}


def put_on(server: ServerHandle | QuirkyServer) -> str:
    """Register them in a base URI that has nothing else; return it."""
    if isinstance(server, QuirkyServer):
        for name, others in DATASETS.items():
            server.add(new_uuid(), name=name, **others)
        return BASE_URI
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    for name, others in DATASETS.items():
        upload(server, base_uri=base_uri, name=name, **others)
    return base_uri
