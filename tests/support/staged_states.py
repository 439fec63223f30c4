"""The states of staged datasets as they are on the disk, read while others write and discard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TORN = "torn"  # the state of what a power cut has left half of


def staged_states(
    staging: Path, *, torn_too: bool = False
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the directory and the state record of each staged dataset.

    One that is being made, or being deleted in the background, is none. With `torn_too` what is
    left of a record counts: on a full disk it is overwritten in place, and the power may go.
    """
    for file in sorted(staging.glob("*/*/[!.]*/state")):
        try:
            text = file.read_text()
        except FileNotFoundError:
            continue  # it went meanwhile
        try:
            record = json.loads(text)
        except ValueError:
            if not torn_too:
                raise
            found = {key: re.search(rf'"{key}": "(.*?)"', text) for key in ("base_uri", "name")}
            record = {key: match[1] for key, match in found.items() if match is not None}
            record["state"] = TORN
        yield file.parent, record
