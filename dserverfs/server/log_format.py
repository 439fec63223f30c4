"""The form of the server's log: one line each, without the links of published datasets.

Whoever has such a link reads the dataset. waitress and Flask name the path of a request that
broke off or failed, and a link is in its path.
"""

from __future__ import annotations

import logging
import re

from dserverfs.base.printable import PrintableFormatter

_LINK = re.compile(r"(/published/)[^/\s]+")


FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ServerFormatter(PrintableFormatter):
    """Formats records of the server's log."""

    def format(self, record: logging.LogRecord) -> str:
        return _LINK.sub(r"\1...", super().format(record))


def configure() -> None:
    """Have the log written to standard error, gunicorn's own part of it as well."""
    handler = logging.StreamHandler()
    handler.setFormatter(ServerFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("dservercore", "alembic"):  # they tell at INFO how they were put together
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # "depth is 1" says nothing
    for others in logging.getLogger("gunicorn.error").handlers:
        others.setFormatter(ServerFormatter(FORMAT))
