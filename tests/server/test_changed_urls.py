"""Signed URLs of the embedded store: changed in any place, they are good for nothing."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
import requests

from dserverfs.base.model import identifier_of
from dserverfs.server.store.signing import Signer
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, begin, encoded, upload, upload_body

CONTENT = b"nobody else's"


class Urls(NamedTuple):
    get: str  # of an item
    put: str  # of an item of a pending upload, with these headers
    headers: dict[str, str]
    readme: str  # a PUT with no header that is pinned
    other: str  # the path of another's item in another bucket


@pytest.fixture(scope="module")
def urls(server: ServerHandle) -> Urls:
    uri = upload(server, {"a": CONTENT})
    elsewhere = server.add_base_uri(search=[server.username], register=[server.username])
    other = upload(server, {"secret": CONTENT}, base_uri=elsewhere)
    signed = server.get(f"/signed-urls/item/{encoded(uri)}/{identifier_of('a')}").json()["url"]
    hidden = server.get(f"/signed-urls/item/{encoded(other)}/{identifier_of('secret')}").json()
    begun = begin(server, upload_body({"a": CONTENT}))
    (item,) = begun["upload_urls"]["items"].values()
    path = urlsplit(hidden["url"]).path
    return Urls(signed, item["url"], item["headers"], begun["upload_urls"]["readme"], path)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def ask(
    url: str, method: str = "GET", target: str | None = None, *headers: str
) -> tuple[int, bytes]:
    """Send a request to the store with its target and headers just as they are."""
    parts = urlsplit(url)
    target = target if target is not None else f"{parts.path}?{parts.query}"
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close", *headers]
    with socket.create_connection(
        (parts.hostname or "", parts.port or 80), timeout=30
    ) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split()[1]), answer


def test_urls_are_good_as_they_are(urls: Urls, session: requests.Session) -> None:
    status, answer = ask(urls.get)
    assert status == 200
    assert answer.endswith(CONTENT)
    assert session.put(urls.put, data=CONTENT, headers=urls.headers, timeout=30).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "PUT", "POST", "DELETE", "PATCH", "COPY"])
def test_another_method_is_refused(urls: Urls, method: str) -> None:
    for url in (urls.get, urls.readme):
        if (method, url) != ("PUT", urls.readme):
            assert ask(url, method, None, "Content-Length: 0")[0] in (400, 403, 405)
    assert ask(urls.readme)[0] == 403


def test_another_key_is_refused(urls: Urls) -> None:
    parts = urlsplit(urls.get)
    bucket = parts.path.split("/")[1]
    for path in (
        *(urls.other, f"{parts.path}/", f"/{bucket}/", f"/{bucket}", "/", f"{parts.path}x"),
        *(f"{parts.path}/../../dtool", parts.path.replace("/data/", "/data/../data/")),
        *(parts.path.replace("/data/", "//data/"), f"{parts.path}%00", f"{parts.path}%2F.."),
        *(f"/{bucket}/..{urls.other}", f"/{bucket}/%2e%2e{urls.other}", f"/.{urls.other}"),
        *(f"/{bucket}%2F..{urls.other}", f"/x/..{parts.path}", f"//{bucket}{urls.other}"),
    ):
        status, answer = ask(urls.get, "GET", f"{path}?{parts.query}")
        assert status in (400, 403, 404, 405), path
        assert not answer.endswith(CONTENT), path


def changes_of(query: str) -> Iterator[str]:
    fields = query.split("&")
    for place, field in enumerate(fields):
        name, _, value = field.partition("=")
        others = [*fields[:place], *fields[place + 1 :]]
        yield "&".join(others)
        for changed in ("", "0", f"{value}0", value[:-1], value[::-1], "-1", "%00", "x" * 5000):
            yield "&".join([*fields[:place], f"{name}={changed}", *fields[place + 1 :]])
    for further in (
        *("acl", "tagging", "uploads", "uploadId=1&partNumber=1", "versionId=null", "policy"),
        *("response-content-type=text/html", "list-type=2", "delete", "x=y", "torrent", "cors"),
    ):
        yield f"{query}&{further}"
        yield f"{further}&{query}"


def test_another_query_is_refused(urls: Urls) -> None:
    for url, method in ((urls.get, "GET"), (urls.readme, "PUT")):
        parts = urlsplit(url)
        for query in changes_of(parts.query):
            status, _ = ask(url, method, f"{parts.path}?{query}", "Content-Length: 0")
            assert 400 <= status < 500, (method, query)


@pytest.mark.parametrize(
    "header",
    [
        "x-amz-copy-source: {other}",
        "x-amz-copy-source-range: bytes=0-1",
        "x-amz-acl: public-read",
        "x-amz-tagging: a=b",
        "x-amz-meta-other: 1",
        "x-amz-website-redirect-location: http://elsewhere/",
        "x-amz-decoded-content-length: 5",
        "x-amz-security-token: x",
    ],
)
def test_header_that_acts_and_is_not_signed_is_refused(urls: Urls, header: str) -> None:
    """By the first of them a user would copy what another may read only."""
    line = header.format(other=urls.other)

    assert ask(urls.readme, "PUT", None, line, "Content-Length: 0")[0] == 403
    pinned = [f"{name}: {value}" for name, value in urls.headers.items()]
    assert ask(urls.put, "PUT", None, *pinned, line, "Content-Length: 0")[0] in (400, 403)


def test_pinned_header_that_differs_is_refused(urls: Urls, session: requests.Session) -> None:
    for name in urls.headers:
        for headers in (
            {**urls.headers, name: "AAAA"},
            {key: value for key, value in urls.headers.items() if key != name},
        ):
            answer = session.put(urls.put, data=CONTENT, headers=headers, timeout=30)
            assert answer.status_code in (400, 403)
    other = session.put(urls.put, data=b"other", headers=urls.headers, timeout=30)
    assert other.status_code == 400


def signed_at(server: ServerHandle, url: str, now: datetime.datetime, expiry_s: int) -> str:
    _, bucket, key = urlsplit(url).path.split("/", 2)
    return Signer(storage_of(server), now=now, expiry_seconds=expiry_s).get_url(bucket, key)


def test_time_of_a_url_is_what_was_signed(server: ServerHandle, urls: Urls) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    minute, day = datetime.timedelta(minutes=1), datetime.timedelta(days=1)

    assert ask(signed_at(server, urls.get, now, 60))[0] == 200
    for moment, expiry_s in ((now - 2 * minute, 60), (now - 8 * day, 604800)):
        assert ask(signed_at(server, urls.get, moment, expiry_s))[0] == 403, moment
    assert ask(signed_at(server, urls.get, now, 10 * 86400))[0] in (400, 403)


ANONYMOUS: list[tuple[str, str]] = [
    *(("GET", f"/{{bucket}}{query}") for query in ("", "?list-type=2", "?uploads", "?versions")),
    *(("GET", f"/{{bucket}}?{query}") for query in ("acl", "policy", "cors", "location")),
    *(("PUT", path) for path in ("/fresh-bucket", "/{bucket}?policy", "/{bucket}/x")),
    *(("DELETE", path) for path in ("/{bucket}", "{other}", "/{bucket}?policy")),
    *(("POST", path) for path in ("/{bucket}?delete", "/", "/?Action=ListUsers", "/{bucket}")),
    *(("GET", path) for path in ("/", "{other}", "/metrics", "/debug/pprof/", "/{bucket}/?x")),
]


@pytest.mark.parametrize(("method", "path"), ANONYMOUS)
def test_nothing_is_told_or_done_without_keys(urls: Urls, method: str, path: str) -> None:
    bucket = urlsplit(urls.get).path.split("/")[1]

    status, answer = ask(
        urls.get, method, path.format(bucket=bucket, other=urls.other), "Content-Length: 0"
    )

    assert status in (400, 403, 405)
    assert b"<Contents>" not in answer
    assert b"<ListAllMyBuckets" not in answer
    assert not answer.endswith(CONTENT)


def test_keys_of_nobody_are_refused(urls: Urls) -> None:
    credential = quote("AKIA/20200101/us-east-1/s3/aws4_request", safe="")
    authorization: Any = (
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIA/20200101/us-east-1/s3/aws4_request,"
        " SignedHeaders=host, Signature=00"
    )
    assert ask(urls.get, "GET", "/", authorization)[0] in (400, 403)
    assert ask(urls.get, "GET", "/", "Authorization: AWS anonymous:x")[0] in (400, 403)
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Signature=0"
    assert ask(urls.get, "GET", f"{urls.other}?{query}")[0] in (400, 403)
