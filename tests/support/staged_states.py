"""The states of staged datasets as they are on the disk, read while others write and discard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def staged_states(staging: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the directory and the state record of each staged dataset.

    One that is being made, or being deleted in the background, is none.
    """
    for file in sorted(staging.glob("*/*/[!.]*/state")):
        try:
            record = json.loads(file.read_text())
        except FileNotFoundError:
            continue  # it went meanwhile
        yield file.parent, record
