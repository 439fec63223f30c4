"""From a template and its values to HTML, in which every value is escaped."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

import jinja2

from dserverfs import __version__
from dserverfs.base.printable import printable

_MAX_VALUE_LETTERS = 2000


def render(template: str, values: Mapping[str, Any]) -> str:
    return _ENVIRONMENT.get_template(template).render(values)


def _shown(value: object) -> str:
    """Return a name or a value of others on one line; what turns the direction is escaped."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_long = len(text) > _MAX_VALUE_LETTERS
    return printable(text[:_MAX_VALUE_LETTERS]) + (" ..." if is_long else "")


def _moment(value: float | datetime.datetime) -> str:
    """Return epoch seconds, or a naive time in UTC, for people."""
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.fromtimestamp(value, datetime.timezone.utc)
    return f"{value:%Y-%m-%d %H:%M} UTC"


def _address(uri: str) -> str:
    """Return a URI as the path of an address: `s3/bucket/uuid`."""
    return uri.replace("://", "/", 1)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("dserverfs.server.pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(shown=_shown, moment=_moment, address=_address)
_ENVIRONMENT.globals["version"] = __version__
