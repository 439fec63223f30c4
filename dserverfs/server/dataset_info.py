"""What dservercore hands its plugins about a dataset, read with its looseness in mind.

Pure. Dates come as strings or numbers, the README as text or as a mapping, and
the counts may be missing although `/me/summary` needs them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dservercore import ValidationError

from dserverfs.limits import date_is_usable


class Dates(NamedTuple):
    frozen_at: float
    created_at: float


class Sizes(NamedTuple):
    number_of_items: int
    size_in_bytes: int


def dates_of(dataset_info: Mapping[str, Any]) -> Dates:
    """Return epoch seconds; a dataset without `created_at` was created when it was frozen.

    Raises ValidationError, which dservercore answers by 400, for what is no date.
    """
    frozen_at = _date(dataset_info["frozen_at"])
    return Dates(frozen_at, _date(dataset_info.get("created_at", frozen_at)))


def _date(value: str | float) -> float:
    try:
        moment_s = float(value)
    except ValueError:
        moment_s = math.nan
    if not date_is_usable(moment_s):
        raise ValidationError("frozen_at or created_at is no date in epoch seconds")
    return moment_s


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
