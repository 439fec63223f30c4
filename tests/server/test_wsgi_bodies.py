"""Limits of bodies where another web server than ours reads requests, as gunicorn does."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable
from typing import Any

import jwt
import pytest
from werkzeug.exceptions import RequestEntityTooLarge

from dserverfs.server.datadir import _new_private_key, public_key_pem
from dserverfs.server.request_limits import DEFAULT_BYTES, WITHOUT_TOKEN_BYTES
from dserverfs.server.wsgi_bodies import LimitedBodies

KEY = _new_private_key()
TOKEN = jwt.encode({"sub": "doc", "exp": time.time() + 3600}, KEY, algorithm="RS256")
EXPIRED = jwt.encode({"sub": "doc", "exp": 1}, KEY, algorithm="RS256")


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    try:
        length = int(environ.get("CONTENT_LENGTH") or -1)
        read = len(environ["wsgi.input"].read(length))
    except RequestEntityTooLarge:
        start_response("413 Request Entity Too Large", [])
        return [b"{}"]
    start_response("200 OK", [])
    return [json.dumps({"read": read, "target": environ["REQUEST_URI"]}).encode()]


def asked(size: int, *, token: str = "", is_chunked: bool = False, **environ: str) -> Any:
    """Send a body of that size; return the status and the answer."""
    head = (
        {"CONTENT_LENGTH": str(size)} if not is_chunked else {"HTTP_TRANSFER_ENCODING": "chunked"}
    )
    if token:
        head["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    said: list[int] = []
    answer = LimitedBodies(app, public_key_pem(KEY))(
        {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/tags",
            "wsgi.input": io.BytesIO(b"x" * size),
            **head,
            **environ,
        },
        lambda status, headers: said.append(int(status[:3])),
    )
    return said[0], json.loads(b"".join(answer))


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(
    ("token", "limit", "status"),
    [
        (TOKEN, DEFAULT_BYTES, 413),
        (EXPIRED, WITHOUT_TOKEN_BYTES, 401),
        ("", WITHOUT_TOKEN_BYTES, 401),
    ],
    ids=["token", "expired", "none"],
)
def test_body_has_the_limit_of_its_route(
    token: str, limit: int, status: int, is_chunked: bool
) -> None:
    largest = asked(limit, token=token, is_chunked=is_chunked)
    beyond = asked(limit + 1, token=token, is_chunked=is_chunked)

    assert (largest[0], largest[1]["read"]) == (200, limit)
    assert beyond[0] == (413 if is_chunked else status)


def test_body_of_a_login_is_too_large_and_not_without_a_token() -> None:
    assert asked(WITHOUT_TOKEN_BYTES + 1, PATH_INFO="/token")[0] == 413


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        ("/a%2Fb?c=d", "/a%2Fb?c=d"),
        ("http://h:1/a?u=http://x/", "/a?u=http://x/"),
        ("/?u=a://b", "/?u=a://b"),
    ],
)
def test_target_is_what_pages_make_links_of(raw: str, target: str) -> None:
    assert asked(1, RAW_URI=raw)[1]["target"] == target
