from __future__ import annotations

import math
from typing import Any

import pytest

from dserverfs.base.errors import UsageError
from dserverfs.base.model import identifier_of
from dserverfs.server.database.upload_request import UploadRequest
from tests.support.servers import upload_body

GIB = 1024**3


def parse(body: Any) -> UploadRequest:
    return UploadRequest.parse(body, max_item_bytes=5 * GIB)


def body(**others: Any) -> dict[str, Any]:
    return upload_body({"a.txt": b"a", "dir/b.txt": b"b"}, **others)


def item(**others: Any) -> dict[str, Any]:
    return {**body()["items"][0], **others}


@pytest.mark.parametrize(
    "overlay",
    [
        {identifier_of("a.txt"): 1, identifier_of("dir/b.txt"): None},
        {identifier_of("a.txt"): 1},
        {},
    ],
    ids=["all", "some", "none"],
)
def test_parse_returns_what_was_announced(overlay: dict[str, Any]) -> None:

    request = parse(
        body(tags=["b", "a", "b"], annotations={"k": {"x": [1]}}, overlays={"o": overlay})
    )

    assert request.items[identifier_of("a.txt")].relpath == "a.txt"
    assert request.tags == ("a", "b")
    assert request.annotations == {"k": {"x": [1]}}
    assert request.overlays == {"o": overlay}
    assert request.created_at is None
    assert request.size_in_bytes == 2


def test_parse_keeps_a_creation_date() -> None:
    assert parse(body(created_at=12.5)).created_at == 12.5


def test_from_json_reads_what_to_json_wrote() -> None:
    overlay = {identifier_of("a.txt"): "é", identifier_of("dir/b.txt"): 2.5}
    request = parse(body(tags=["t"], annotations={"a": None}, overlays={"o": overlay}))

    assert UploadRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    "others",
    [
        {"uuid": 1},
        {"name": None},
        {"items": {}},
        {"items": [1]},
        {"items": [{"relpath": "a"}]},
        {"items": [item(size_in_bytes=True)]},
        {"items": [item(size_in_bytes=1.0)]},
        {"items": [item(utc_timestamp="1")]},
        {"frozen_at": "1700000000"},
        {"frozen_at": True},
        {"tags": "t"},
        {"tags": [1]},
        {"annotations": []},
        {"overlays": {"o": []}},
        {"hash_function": None},
    ],
)
def test_parse_refuses_another_form_with_422(others: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(body(**others))

    assert caught.value.status == 422


@pytest.mark.parametrize("value", [None, [], "text", 1])
def test_parse_refuses_a_body_that_is_no_object_with_422(value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse(value)

    assert caught.value.status == 422


@pytest.mark.parametrize(
    "relpath",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".", "a\0b", "a/" + "x" * 256, "\ud800"],
)
def test_parse_refuses_relpaths_no_file_system_holds(relpath: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(body(items=[item(relpath=relpath)]))

    assert caught.value.status == 400


@pytest.mark.parametrize(
    "others",
    [
        {"uuid": "../../etc"},
        {"uuid": "AF6727BF-29C7-43DD-B42F-A5D7EDE28337"},
        {"name": "a/b"},
        {"name": ""},
        {"name": "x" * 81},
        {"hash_function": "sha256sum_hexdigest"},
        {"creator_username": "Jörg"},
        {"creator_username": ""},
        {"creator_username": " a"},
        {"frozen_at": math.nan},
        {"frozen_at": -1e12},
        {"frozen_at": 10**400},
        {"frozen_at": 1e12},
        {"created_at": math.inf},
        {"items": [item(hash="0" * 31)]},
        {"items": [item(hash="A" * 32)]},
        {"items": [item(hash="0" * 32 + "\n")]},
        {"items": [item(size_in_bytes=-1)]},
        {"items": [item(size_in_bytes=5 * GIB + 1)]},
        {"items": [item(), item()]},
        {"items": [item(relpath="a"), item(relpath="a/b")]},
        {"items": [item(relpath="/".join(["x" * 200] * 8))]},
        {"tags": ["a tag"]},
        {"tags": [".."]},
        {"annotations": {"a b": 1}},
        {"annotations": {"a.b": 1}},
        {"annotations": {"a": "\ud800"}},
        {"annotations": {"a": math.nan}},
        {"overlays": {"o": {"0" * 40: 1}}},
    ],
)
def test_parse_refuses_values_with_400(others: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(body(**others))

    assert caught.value.status == 400


def test_parse_takes_the_largest_item_and_the_empty_one() -> None:
    parsed = parse(
        body(items=[item(size_in_bytes=5 * GIB), item(relpath="empty", size_in_bytes=0)])
    )

    assert sorted(each.size_in_bytes for each in parsed.items.values()) == [0, 5 * GIB]
