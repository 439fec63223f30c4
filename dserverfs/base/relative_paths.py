"""Paths of a configuration that count from the directory in which a program was started.

For a program that goes on in another directory. Pure.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TypeVar

V = TypeVar("V")


def counted_from(
    directory: str, values: Mapping[str, V], names: Collection[str]
) -> dict[str, V | str]:
    """Return `values` with the paths that are relative made absolute; `~` stays for later.

    `names` are those of paths, also with `_` and more behind them.
    """
    beginnings = tuple(f"{name}_" for name in names)
    return {
        name: os.path.join(directory, value)
        if isinstance(value, str)
        and value[:1] not in ("", "~")
        and (name in names or name.startswith(beginnings))
        else value
        for name, value in values.items()
    }
