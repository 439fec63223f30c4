"""A counting front before the real store, and requests by signed URLs to a site cache before it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import threading
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import boto3

from dserverfs.server.store.signing import Signer, Storage
from tests.support.front import Exchange, Fault, Front, Plan, for_good, front
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, new_uuid


class Reply(NamedTuple):
    status: int
    said: str | None  # by the cache, of itself
    headers: dict[str, str]
    body: bytes


class Asked(NamedTuple):
    """A GET that came to the store, and how many bytes it was answered."""

    path: str
    range: str
    status: int
    length: int


class SignedStore:
    """The store as signed URLs name it, by the address of a front that counts."""

    def __init__(self, storage: Storage, before: Front) -> None:
        self.storage = dataclasses.replace(storage, endpoint=before.url)
        self.front = before
        session = boto3.session.Session(
            storage.access_key, storage.secret_key, region_name=storage.region
        )
        self.s3: Any = session.client("s3", endpoint_url=storage.endpoint)  # past the front
        self._lock = threading.Lock()
        self._asked: list[Asked] = []
        before.add(Plan("^HEAD", for_good(_pass_head_on)))
        self._counting = before.add(Plan("^GET", for_good(self.note)))

    @contextlib.contextmanager
    def planned(self, faults: Iterable[Fault], *, within: str = "") -> Iterator[Plan]:
        """Have these done to GETs before they are counted, as long as the block lasts."""
        self.front.remove(self._counting)
        try:
            with self.front.planned("^GET", faults, within=within) as plan:
                yield plan
        finally:
            self._counting = self.front.add(Plan("^GET", for_good(self.note)))

    def new_object(self, content: bytes) -> str:
        key = new_uuid()
        self.put(key, content)
        return key

    def put(self, key: str, content: bytes) -> None:
        self.s3.put_object(Bucket=self.storage.bucket, Key=key, Body=content)

    def url(self, key: str, *, age_s: float = 0, bucket: str | None = None) -> str:
        """Return a URL for GET that was signed so long ago, for five minutes."""
        then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age_s)
        signer = Signer(self.storage, now=then, expiry_seconds=300)
        return signer.get_url(bucket or self.storage.bucket, key)

    def note(self, exchange: Exchange) -> None:
        """Pass a request on, and count what is answered."""
        answer = exchange.ask()
        path = exchange.path.partition("?")[0]
        asked = Asked(path, exchange.headers.get("Range", ""), answer.status, len(answer.body))
        with self._lock:
            self._asked.append(asked)
        exchange.answer(answer)

    def take_asked(self) -> list[Asked]:
        """Return what came since the last call."""
        with self._lock:
            asked, self._asked = self._asked, []
        return asked


def _pass_head_on(exchange: Exchange) -> None:
    answer = exchange.ask()
    length = [each for each in answer.headers if each[0].lower() == "content-length"]
    exchange.say(exchange.head(answer, *length) + b"\r\n")


@contextlib.contextmanager
def signed_store(server: ServerHandle) -> Iterator[SignedStore]:
    storage = storage_of(server)
    host, _, port = storage.endpoint.removeprefix("http://").partition(":")
    with front((host, int(port))) as before:
        store = SignedStore(storage, before)
        yield store
        store.s3.close()


def ask(
    port: int,
    url: str,
    *,
    method: str = "GET",
    host: str | None = None,
    **headers: str,
) -> Reply:
    """Send a request for a signed URL to what listens on a port of this machine."""
    parts = urllib.parse.urlsplit(url)
    path = url.removeprefix(f"{parts.scheme}://{parts.netloc}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host or parts.netloc)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        try:
            body = response.read()
        except http.client.IncompleteRead as error:
            body = error.partial
        said = response.headers.get("Dserverfs-Site-Cache")
        return Reply(response.status, said, dict(response.headers.items()), body)
    finally:
        connection.close()
