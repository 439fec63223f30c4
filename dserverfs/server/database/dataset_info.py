"""Dates, counts and README of a dataset, out of the mapping that dservercore hands to plugins.

Pure. The mapping is loose: dates come as strings or numbers, the README as text or as a
mapping, and the counts may be missing although `/me/summary` needs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Dates(NamedTuple):
    frozen_at: float
    created_at: float


class Sizes(NamedTuple):
    number_of_items: int
    size_in_bytes: int


def dates_of(dataset_info: Mapping[str, Any]) -> Dates:
    """Return epoch seconds; a dataset without `created_at` was created when it was frozen."""
    frozen_at = float(dataset_info["frozen_at"])
    return Dates(frozen_at, float(dataset_info.get("created_at", frozen_at)))


def sizes_of(dataset_info: Mapping[str, Any]) -> Sizes:
    """Return the counts given, else those of the manifest."""
    items = dataset_info["manifest"]["items"]
    number = dataset_info.get("number_of_items")
    size = dataset_info.get("size_in_bytes")
    if size is None:
        size = sum(item.get("size_in_bytes", 0) for item in items.values())
    return Sizes(len(items) if number is None else number, size)


def readme_text(dataset_info: Mapping[str, Any]) -> str:
    readme = dataset_info["readme"]
    return readme if isinstance(readme, str) else json.dumps(readme, ensure_ascii=False)
