"""Getting a token for a password or by a browser, and keeping it.

Used by `dserverfs login`. Knows the routes by which servers give tokens:

    POST /token             ours; token-generator-ldap, which is a server of its own
    POST /auth/ldap/token   dserver's plugin-ldap
    POST /auth/token        ours; of the plugin-oauth2 it takes no passwords
    GET  /auth/info         whether the plugin-oauth2 is there, and has a provider
    GET  /auth/login?next=  the page where a browser is sent to the provider and back
    GET  /auth/token        the token of the browser's session

A newer plugin-oauth2 has the last three below /auth/oauth2. After the approval it sends a
browser to its own pages only, so the token is shown there, and pasted into the terminal.

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
    PermissionDenied,
    ProtocolError,
    Unreachable,
    Unsupported,
    UsageError,
)
from dserverfs.base.limits import parse_json
from dserverfs.base.local_files import make_private
from dserverfs.base.loopback import is_loopback
from dserverfs.base.model import User
from dserverfs.base.printable import one_line
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.routes import FIRST_ATTEMPTS
from dserverfs.remote.tokens import TokenSource
from dserverfs.remote.trust import Trust

_ROUTES = ("/token", "/auth/ldap/token", "/auth/token")
_TOKEN_OF_OAUTH2 = "/auth/token"
_BROWSER_ROUTES = ("/auth", "/auth/oauth2")


class Credentials(NamedTuple):
    """A user's name and password; never log it."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ...)"


class Approval(NamedTuple):
    """A page where a user approves in a browser."""

    url: str
    provider: str


def require_private_way(url: str, what: str = "password") -> None:
    """Raise UsageError if a password or token sent to `url` could be read on the way."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{url}: your {what} would be sent unencrypted; name the server as https://..., set"
            " DSERVER_PROTOCOL=https, or say --insecure"
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
        except (NotAuthenticated, Unsupported) as error:
            # The plugin-oauth2 wants a key of its operator's there.
            if (
                generator_url
                or not url.endswith(_TOKEN_OF_OAUTH2)
                or error.status not in (400, 501)
            ):
                raise
    hint = "" if generator_url else "; a token generator elsewhere is named by"
    hint += "" if generator_url else " DSERVER_TOKEN_GENERATOR_URL"
    raise Unsupported(
        f"{generator_url or base_url} gives no tokens for passwords: get one the way this"
        f" server's operator says, and name its file by DSERVER_TOKEN_FILE{hint}"
    )


def approval_page(base_url: str, trust: Trust) -> Approval | None:
    """Return where a user approves in a browser; None if the dserver has no such page.

    Of the server's answer only that it has one counts, and the provider's name: a server
    behind a proxy does not know its own address, and another's page gets no token of it.
    """
    for prefix in _BROWSER_ROUTES:
        info = _get(f"{base_url}{prefix}/info", trust)
        if isinstance(info, Mapping) and info.get("configured") is True:
            path = urllib.parse.urlsplit(base_url).path
            back = urllib.parse.quote(f"{path}{prefix}/token", safe="/")
            provider = one_line(str(info.get("provider") or "its provider"), 60)
            return Approval(f"{base_url}{prefix}/login?next={back}", provider)
    return None


def token_in(pasted: str) -> str:
    """Return the token in what a user copied: itself, a page's JSON, or an address with it.

    Raises UsageError, which does not show it.
    """
    text = pasted.strip()
    try:
        found = parse_json(text.encode("utf-8", "replace"), "it") if text[:1] == "{" else None
    except ProtocolError:
        found = None
    if isinstance(found, Mapping):
        text = str(found.get("token") or "")
    elif "://" in text:
        parts = urllib.parse.urlsplit(text)
        named = urllib.parse.parse_qs(f"{parts.query}&{parts.fragment}")
        text = named.get("token", [""])[0]
    text = text.strip().strip('"')
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(
            "there is no token in what was given: copy the token, or all that the page shows"
        )
    return text


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
    _keep("token", path, token)


def keep_address(path: Path, base_url: str) -> None:
    """Write to `path` where the routes of a server begin; raises UsageError if that cannot be."""
    _keep("address", path, base_url)


def _keep(what: str, path: Path, line: str) -> None:
    try:
        make_private(path.parent)
        write_durably(path, f"{line}\n".encode())
    except OSError as error:
        raise UsageError(f"the {what} cannot be kept in {path}: {error.strerror}") from error


def forget(path: Path) -> bool:
    """Delete the token or address kept in `path`; return whether there was one. UsageError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UsageError(f"{path}: cannot be deleted: {error.strerror}") from error
    return True


def _get(url: str, trust: Trust) -> Any:
    """Return the JSON that `url` answers without a token; None if there is no such route."""
    transport = ServerTransport(url, TokenSource(None, None), trust=trust)
    try:
        return transport.request("GET", "", authenticated=False, attempts=FIRST_ATTEMPTS).json()
    except (NotFound, PermissionDenied, ProtocolError):  # or a page for all addresses
        return None
    except Unreachable as error:
        if error.status in (401, 403, 404, 405):  # of a proxy
            return None
        raise
    finally:
        transport.close()


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
