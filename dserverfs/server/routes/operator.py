"""The operator's token, to whom figures and the reasons of failures are shown.

It is in a file of the data directory. An address would not do: behind a proxy on this machine
everybody's is 127.0.0.1. A user's token would not do: it is checked with the database, and
figures are wanted most when that is away.
"""

from __future__ import annotations

import hmac

from flask import request

from dserverfs.base.errors import NotAuthenticated

_BEARER = "Bearer "


def is_asking(token: str) -> bool:
    """Return whether the request has the operator's token."""
    sent = request.headers.get("Authorization", "")
    if not sent.startswith(_BEARER):
        return False
    return hmac.compare_digest(sent[len(_BEARER) :].strip().encode(), token.encode())


def require(token: str) -> None:
    """Raise NotAuthenticated unless the request has the operator's token."""
    if not is_asking(token):
        raise NotAuthenticated(
            "this needs the token in the file metrics_token of the server's data directory",
            status=401,
        )
