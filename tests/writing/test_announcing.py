"""A dataset is announced, and the answer read, some items at a time."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Generator, Iterator
from typing import Any, cast

import pytest

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.item_stream import PART_BYTES, ItemStream
from dserverfs.base.model import identifier_of
from dserverfs.base.retry import Deadline
from dserverfs.remote.answers import Answer
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.json_body import JsonBody
from dserverfs.remote.routes import Routes
from dserverfs.remote.upload_api import UploadRoutes
from dserverfs.remote.upload_urls import UploadUrl, UrlTable

HEAD = {"name": "ünïcödé", "tags": []}


@pytest.mark.parametrize("count", [0, 1, 2, 499, 500, 501, 1000, 1001])
@pytest.mark.parametrize("at_once", [-1, 7, 100_000])
def test_body_is_the_object_and_as_long_as_it_says(count: int, at_once: int) -> None:
    items = [{"relpath": f"é{number}"} for number in range(count)]
    body = JsonBody(HEAD, items)

    for _ in range(2):
        body.rewind()
        sent = b"".join(iter(lambda: body.read(at_once), b""))

        assert json.loads(sent) == {**HEAD, "items": items}
        assert len(sent) == len(body)


def test_body_with_a_number_that_json_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="JSON"):
        JsonBody({"annotations": {"a": float("nan")}}, [])


def entry(number: int) -> dict[str, Any]:
    url = f"http://store/{number}?X-Amz-Date=20231114T221320Z&X-Amz-Expires=3600&{'x' * 500}"
    return {"url": url, "relpath": f"}},{number}", "headers": {"a": str(number)}}


def answer_about(count: int, *, stored_first: bool) -> dict[str, Any]:
    items = {identifier_of(str(number)): entry(number) for number in range(count)}
    urls = {"readme": "http://store/readme", "items": items, "more": {"items": {}}}
    beside: dict[str, Any] = {"uri": "s3://bucket/uuid", "stored": list(items)}
    return {**beside, "upload_urls": urls} if stored_first else {"upload_urls": urls, **beside}


@pytest.mark.parametrize("stored_first", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_items_inside_of_an_object_are_read_with_what_is_beside_them(
    count: int, stored_first: bool
) -> None:
    answer = answer_about(count, stored_first=stored_first)
    text = json.dumps(answer).encode()
    stream = ItemStream("the answer", ["upload_urls"])

    found: dict[str, Any] = {}
    most = 0
    for start in range(0, len(text), 4096):
        some = stream.feed(text[start : start + 4096])
        most = max(most, len(some))
        found |= some
    found |= stream.close()

    assert found == answer["upload_urls"]["items"]
    assert stream.beside == {"uri": answer["uri"], "stored": answer["stored"]}
    assert stream.beside_items == {"readme": "http://store/readme", "more": {"items": {}}}
    assert (most > 0) == (len(text) > PART_BYTES)


@pytest.mark.parametrize("text", ["{}", '{"upload_urls": []}', '{"upload_urls": {"items": [}}'])
def test_answer_without_the_items_is_an_error(text: str) -> None:
    stream = ItemStream("the answer", ["upload_urls"])
    stream.feed(text.encode())

    with pytest.raises(ProtocolError, match="the answer cannot be read"):
        stream.close()


def test_table_gives_each_url_with_its_headers() -> None:
    table = UrlTable()
    urls = {
        identifier_of(str(number)): UploadUrl(f"http://store/{number}", {"a": str(number)})
        for number in range(300)
    }

    table.add(urls.items())
    table.complete()

    assert dict(table) == urls
    assert len(table) == 300
    assert "0" * 40 not in table


class Numbered:
    """So many items, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"relpath": str(n), "size_in_bytes": n} for n in range(self._count))


class Lazy:
    """A transport to a server that makes its answer while it is read."""

    base_url = "http://server"

    def __init__(self, count: int) -> None:
        self.count = count

    def request(self, method: str, path: str, **options: Any) -> Answer:
        versions = b'{"versions": {"dservercore": "0.20.0", "signed-url": "1"}}'
        return Answer(self.base_url, content=versions)

    def stream(self, path: str, limit: Deadline, body: JsonBody) -> Answer:
        body.rewind()
        while body.read(65536):
            pass
        return Answer(self.base_url)

    def read_pieces(
        self, response: Answer, limit: Deadline, *, max_bytes: int
    ) -> Generator[bytes, None, None]:
        yield b'{"uri": "s3://bucket/uuid", "upload_urls": {"readme": "http://store/r", "items": {'
        for number in range(self.count):
            separator = "," if number else ""
            key = json.dumps(identifier_of(str(number)))
            yield f"{separator}{key}: {json.dumps(entry(number))}".encode()
        yield b"}}}"


def test_memory_for_an_announcement_does_not_grow_with_the_items() -> None:
    peaks = []
    tracemalloc.start()
    try:
        for count in (6_000, 18_000):
            routes = UploadRoutes(Routes(cast("ServerTransport", Lazy(count))))
            tracemalloc.reset_peak()
            urls = routes.start("s3://bucket", HEAD, Numbered(count))
            peaks.append(tracemalloc.get_traced_memory()[1])
            assert len(urls.items) == count
    finally:
        tracemalloc.stop()

    assert peaks[1] - peaks[0] < 1_000_000
