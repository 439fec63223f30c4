"""The conditions that datasets are found by, and what of a dataset answers them.

Used by the command line and the tree, which make them, and by the catalogue, which finds the
datasets. All conditions have to hold, and of one kind all of them. Pure; immutable.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dserverfs.base.errors import DserverfsError
from dserverfs.base.model import UUID, Dataset

_WORD = re.compile(r"[^\W_]+")


class AnnotationIs(NamedTuple):
    """A condition on one annotation: that it is there, or its value."""

    name: str
    value: str | None = None  # as text, or as JSON

    def holds(self, annotations: Mapping[str, Any]) -> bool:
        if self.name not in annotations:
            return False
        value = annotations[self.name]
        return self.value is None or value == self.value or self._is_json_of(value)

    def _is_json_of(self, value: Any) -> bool:
        try:
            wanted = json.loads(self.value or "")
        except (ValueError, RecursionError):
            return False
        # Some dservers tell every value as the text that Python makes of it. As JSON, for
        # 1 is not true.
        return value == str(wanted) or _canonical(value) == _canonical(wanted)


@dataclass(frozen=True)
class Conditions:
    """What a dataset has to be like; none of them fit every dataset."""

    tags: tuple[str, ...] = ()
    creators: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()  # as a dserver's free text: see `has_words`
    annotations: tuple[AnnotationIs, ...] = ()
    names: tuple[str, ...] = ()  # patterns as a shell has them
    uuids: tuple[UUID, ...] = ()
    hashes: tuple[str, ...] = ()  # MD5 of items, lower case
    frozen_from: float = -math.inf  # epoch seconds
    frozen_before: float = math.inf

    def fit_listed(self, dataset: Dataset) -> bool:
        """Return whether those hold that a listing answers."""
        return (
            all(dataset.creator_username == creator for creator in self.creators)
            and all(fnmatch.fnmatchcase(dataset.name, pattern) for pattern in self.names)
            and all(dataset.uuid == uuid for uuid in self.uuids)
            and self.frozen_from <= dataset.frozen_at < self.frozen_before
        )


class Found(NamedTuple):
    """A dataset that fits."""

    dataset: Dataset
    relpaths: tuple[str, ...] = ()  # of items that a hash was asked for, the first ones


class FoundAt(NamedTuple):
    """Where a dataset is that was found."""

    base_uri: str
    uuid: UUID


class Findings(NamedTuple):
    """What was found, the newest first, and what could not be looked into."""

    found: list[Found]
    failed: list[tuple[Dataset, DserverfsError]]


def has_words(free_text: str, content: Collection[str]) -> bool:
    """Return whether texts have any word of `free_text`, or all of its phrases in double quotes.

    As a dserver's search, but without the stems of words.
    """
    phrases = [found for found in map(_words, re.findall(r'"([^"]*)"', free_text)) if found.strip()]
    places = [_words(text) for text in content]

    def is_there(phrase: str) -> bool:
        return any(phrase in place for place in places)

    if phrases:
        return all(map(is_there, phrases))
    words = map(_words, free_text.replace('"', " ").split())  # one with a hyphen is a phrase
    return any(is_there(word) for word in words if word.strip())


def _words(text: str) -> str:
    """Return the words, lower case, each between spaces."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
