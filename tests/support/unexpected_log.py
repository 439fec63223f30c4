"""Tests fail on a warning of dserverfs that they did not announce.

A test that provokes one says so: `@pytest.mark.expects_log("expired", "cache")`. Each
pattern must be found in a record, and each record at WARNING or above must hold one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence


class WarningCollector(logging.Handler):
    """Keeps what dserverfs logs at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def install(self) -> None:
        logging.getLogger("dserverfs").addHandler(self)

    def remove(self) -> None:
        logging.getLogger("dserverfs").removeHandler(self)


def complaint(records: Sequence[logging.LogRecord], patterns: Sequence[str]) -> str | None:
    """Return what is wrong with `records` for a test that announced `patterns`, or None."""
    lines = [f"{record.levelname} {record.name}: {record.getMessage()}" for record in records]
    unexpected = [line for line in lines if not any(re.search(p, line) for p in patterns)]
    missing = [p for p in patterns if not any(re.search(p, line) for line in lines)]
    if unexpected:
        return "logged, and not expected:\n" + "\n".join(unexpected)
    if missing:
        return "expected in the log, and not found: " + ", ".join(map(repr, missing))
    return None
