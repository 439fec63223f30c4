"""Keeps the queries of URLs, which are secrets if they are signed, out of urllib3's log.

Used where urllib3's pools are made, so that it holds for every user of a connection: a
mount, `dtool --debug`, another program's debug log.
"""

from __future__ import annotations

import logging

_LOGGER = "urllib3.connectionpool"


class _WithoutQuery(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                argument.partition("?")[0] + "?..."
                if isinstance(argument, str) and "?" in argument
                else argument
                for argument in record.args
            )
        return True


def hide_queries() -> None:
    """Cut queries out of urllib3's log from now on."""
    logger = logging.getLogger(_LOGGER)
    if not any(isinstance(each, _WithoutQuery) for each in logger.filters):
        logger.addFilter(_WithoutQuery())
