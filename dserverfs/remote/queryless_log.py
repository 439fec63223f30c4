"""Keeps the queries of URLs, which are secrets if they are signed, out of urllib3's log.

Used where urllib3's pools are made, so that it holds for every user of a connection: a
mount, `dtool --debug`, another program's debug log.
"""

from __future__ import annotations

import logging


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
    """Cut queries out of urllib3's log from now on.

    Of each of its modules: a filter does not hold for the loggers below its own, and several
    name URLs, also at WARNING.
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith("urllib3.")]
    for logger in map(logging.getLogger, names):
        if not any(isinstance(each, _WithoutQuery) for each in logger.filters):
            logger.addFilter(_WithoutQuery())
