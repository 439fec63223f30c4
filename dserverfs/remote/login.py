"""Getting a token for a password, and keeping it.

Used by `dserverfs login`. Knows the routes by which servers give tokens:

    POST /token             ours; token-generator-ldap, which is a server of its own
    POST /auth/ldap/token   dserver's plugin-ldap

Token generators answer 200 to a wrong password, without a token. A password goes
nowhere but to the addresses it is given, and never unencrypted to another
machine unless told to. Blocking.

On disk: one file a server, of its owner alone, written under another name, synced
and renamed: any reader, a mount too, finds the old token or the new one.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import (
    DserverfsError,
    NotAuthenticated,
    NotFound,
    ProtocolError,
    Unreachable,
    Unsupported,
    UsageError,
)
from dserverfs.base.local_files import make_private
from dserverfs.base.model import User
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.routes import FIRST_ATTEMPTS
from dserverfs.remote.tokens import TokenSource
from dserverfs.remote.trust import Trust, is_loopback

_ROUTES = ("/token", "/auth/ldap/token")


class Credentials(NamedTuple):
    """A user's name and password; never log it."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ...)"


def require_private_way(url: str) -> None:
    """Raise UsageError if a password sent to `url` could be read on the way."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{url}: your password would be sent unencrypted; set DSERVER_PROTOCOL=https,"
            " or say --insecure"
        )


def fetch_token(
    base_url: str, generator_url: str | None, credentials: Credentials, trust: Trust
) -> str:
    """Return a token for a user of the dserver at `base_url`.

    From `generator_url` if there is one, else by the routes of the dserver.
    Raises NotAuthenticated for a wrong password, and Unsupported if there is no
    route that takes one.
    """
    urls = [generator_url] if generator_url else [base_url + route for route in _ROUTES]
    for url in urls:
        try:
            return _post(url, credentials, trust)
        except (NotFound, Unreachable) as error:
            # From a proxy or from the server itself: there is no such route.
            if error.status not in (404, 405):
                raise
    hint = "" if generator_url else "; a token generator elsewhere is named by"
    hint += "" if generator_url else " DSERVER_TOKEN_GENERATOR_URL"
    raise Unsupported(
        f"{generator_url or base_url} gives no tokens for passwords: get one the way this"
        f" server's operator says, and name its file by DSERVER_TOKEN_FILE{hint}"
    )


def user_of(base_url: str, token: str, trust: Trust) -> User:
    """Return the token's user by the dserver's word; raises NotAuthenticated if it refuses it."""
    transport = ServerTransport(base_url, TokenSource(token, None), trust=trust)
    try:
        return User.from_json(transport.get("/me").json())
    except NotAuthenticated as error:
        raise NotAuthenticated(
            f"{base_url} refuses the token it was given for: does it know the user?",
            status=error.status,
        ) from error
    finally:
        transport.close()


def keep_token(path: Path, token: str) -> None:
    """Write the token to `path`, for its owner alone; raises UsageError if that cannot be."""
    try:
        make_private(path.parent)
        write_durably(path, f"{token}\n".encode())
    except OSError as error:
        raise UsageError(f"the token cannot be kept in {path}: {error.strerror}") from error


def _post(url: str, credentials: Credentials, trust: Trust) -> str:
    """Return the token that `url` answers; raises NotFound if it is no such route."""
    transport = ServerTransport(url, TokenSource(None, None), trust=trust)
    try:
        response = transport.request(
            "POST",
            "",
            json=credentials._asdict(),
            authenticated=False,
            attempts=FIRST_ATTEMPTS,
            repeatable=_is_no_answer,
        )
    except (NotAuthenticated, ProtocolError) as error:
        if isinstance(error, NotAuthenticated) or error.status == 400:
            raise _wrong(url, credentials, error.status) from error
        raise
    finally:
        transport.close()
    return _token_in(response.json(), url, credentials)


def _is_no_answer(error: DserverfsError) -> bool:
    """Return whether no server answered: one that did has got the password already."""
    return isinstance(error, Unreachable) and error.status is None


def _token_in(answer: Any, url: str, credentials: Credentials) -> str:
    if not isinstance(answer, Mapping):
        raise ProtocolError(f"{url}: the answer is not a JSON object; is this a dserver?")
    token = answer.get("token")
    if isinstance(token, str) and token:
        return token
    if answer.get("status") == "fail" or "message" in answer:
        raise _wrong(url, credentials, None)
    raise ProtocolError(f"{url}: there is no token in the answer; is this a dserver?")


def _wrong(url: str, credentials: Credentials, status: int | None) -> DserverfsError:
    return NotAuthenticated(
        f"{url}: wrong password for user {credentials.username}, or there is no such user",
        status=status,
    )
