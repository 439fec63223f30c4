"""The form of the server's log: one line each, without the links of published datasets.

Whoever has such a link reads the dataset. waitress and Flask name the path of a request that
broke off or failed, and a link is in its path.
"""

from __future__ import annotations

import logging
import re

from dserverfs.base.printable import PrintableFormatter

_LINK = re.compile(r"(/published/)[^/\s]+")


class ServerFormatter(PrintableFormatter):
    """Formats records of the server's log."""

    def format(self, record: logging.LogRecord) -> str:
        return _LINK.sub(r"\1...", super().format(record))
