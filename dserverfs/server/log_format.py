"""The form of the server's log: one line each, without the links of published datasets.

Whoever has such a link reads the dataset. waitress and Flask name the path of a request that
broke off or failed, and a link is in its path.
"""

from __future__ import annotations

import logging
import re

from dserverfs.base.printable import PrintableFormatter, printable

_LINK = re.compile(r"(/published/)[^/\s]+")


FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ServerFormatter(PrintableFormatter):
    """Formats records of the server's log."""

    def format(self, record: logging.LogRecord) -> str:
        return _masked(super().format(record))


def mask(record: logging.LogRecord) -> bool:
    """Take the links out of a record, however it is formatted then, and let it pass."""
    record.msg, record.args = _masked(printable(record.getMessage())), ()
    if record.exc_info:
        record.exc_text = _masked(PrintableFormatter().formatException(record.exc_info))
    return True


def _masked(text: str) -> str:
    return _LINK.sub(r"\1...", text)


def configure() -> None:
    """Have the log written to standard error, and no link be in gunicorn's own."""
    handler = logging.StreamHandler()
    handler.setFormatter(ServerFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("dservercore", "alembic"):  # they tell at INFO how they were put together
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # "depth is 1" says nothing
    gunicorn = logging.getLogger("gunicorn.error")  # whose handlers a SIGHUP makes anew
    if not gunicorn.filters:
        gunicorn.addFilter(mask)
