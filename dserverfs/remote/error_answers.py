"""The messages of error answers, and the causes of exceptions.

Used by the transport, which makes errors of ours of them. dservers, their plugins, and
the proxies and stores around them each have a form of their own. Pure.
"""

from __future__ import annotations

import re
from typing import Any

from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import parse_json
from dserverfs.base.printable import one_line
from dserverfs.remote.answers import Answer

_TITLE = re.compile(r"<(title|message)[^>]*>([^<]+)</", re.IGNORECASE)


def is_about_the_token(response: Answer) -> bool:
    """Return whether an error has the form of flask-jwt-extended."""
    data = _json_of(response)
    return isinstance(data, dict) and "msg" in data


def is_the_servers_own(response: Answer) -> bool:
    """Return whether an error has the form of flask-smorest, which is that of every dserver."""
    data = _json_of(response)
    return (
        isinstance(data, dict)
        and data.get("code") == response.status
        and isinstance(data.get("status"), str)
    )


def message_of(response: Answer) -> str:
    """Return the server's message, one short line, whichever of its forms it used."""
    data = _json_of(response)
    if data is None:
        match = _TITLE.search(response.text[:10_000])  # HTML of a proxy, XML of a store
        return one_line(match[2] if match else response.reason or "") or "no reason given"
    if isinstance(data, dict):
        for key in ("msg", "message", "errors", "error", "status"):
            if data.get(key):
                return one_line(str(data[key]))  # at most as deep as JSON may be
    return one_line(response.reason or "") or "no reason given"


def _json_of(response: Answer) -> Any:
    """Return the JSON of an answer; None if it is none that can be used."""
    try:
        return parse_json(response.content, "the answer")
    except ProtocolError:
        return None


def root_cause(error: BaseException) -> str:
    """Return the innermost reason, without urllib3's object addresses and URLs.

    Not by `__context__`: that is any error this thread was handling.
    """
    seen: BaseException = error
    followed = {id(seen)}
    while (inner := _cause(seen)) is not None and id(inner) not in followed:
        seen = inner
        followed.add(id(seen))
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    return one_line(str(seen)) or type(seen).__name__


def _cause(error: BaseException) -> BaseException | None:
    """Return the cause that an exception names itself."""
    # urllib3 names it as `reason`, or hands it to its own among the arguments.
    for named in (getattr(error, "reason", None), error.__cause__, *error.args):
        if isinstance(named, BaseException) and named is not error:
            return named
    return None
