"""Datasets found by conditions: `dserverfs.search`."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dserverfs.base.conditions import AnnotationIs, Conditions
from dserverfs.base.model import DserverURI
from dserverfs.python import notebook
from dserverfs.python.datasets import Dataset
from dserverfs.python.sessions import Access, session_of

Words = str | Sequence[str]


class Datasets(list[Dataset]):
    """Datasets, the newest first; in a notebook a table."""

    def _repr_html_(self) -> str:
        return notebook.table(self)


def search(
    base: str,
    text: Words = (),
    *,
    tags: Words = (),
    creator: Words = (),
    annotations: Mapping[str, Any] | None = None,
    name: Words = (),
    hash: Words = (),
    newer: datetime.datetime | datetime.date | None = None,
    older: datetime.datetime | datetime.date | None = None,
) -> Datasets:
    """Return the datasets for which all conditions hold, the newest first.

    `base` is dserver://HOST, or a base URI. The conditions are those of `dserverfs find`: words of
    what people wrote (any of the words, all of several texts), tags, user names, values of
    annotations (None: any value), patterns of names, MD5s of items, and when it was frozen; a
    date without a zone is this machine's. Asks the server; blocks. Raises what keeps one of the
    datasets from being looked into.
    """
    uri = DserverURI.parse(str(base))
    access = Access(uri.server)
    conditions = Conditions(
        tags=_all(tags),
        creators=_all(creator),
        texts=_all(text),
        annotations=tuple(
            AnnotationIs(key, None if value is None else _as_text(value))
            for key, value in (annotations or {}).items()
        ),
        names=_all(name),
        hashes=tuple(each.lower() for each in _all(hash)),
        frozen_from=-math.inf if newer is None else _seconds(newer),
        frozen_before=math.inf if older is None else _seconds(older),
    )
    findings = session_of(access).client.catalogue.finder.find(uri, conditions)
    for _, error in findings.failed:
        raise error
    return Datasets(Dataset(access, found.dataset) for found in findings.found)


def _all(words: Words) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _seconds(moment: datetime.datetime | datetime.date) -> float:
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.combine(moment, datetime.time())
    return moment.timestamp()
