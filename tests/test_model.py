"""URIs, dates and hostile names."""

from __future__ import annotations

import pytest

from dserverfs.errors import ProtocolError, UsageError
from dserverfs.model import UUID as DatasetUUID
from dserverfs.model import (
    Dataset,
    DserverURI,
    Item,
    component_is_usable,
    identifier_of,
    parse_timestamp,
    relpath_is_usable,
    split_base_uri,
)

UUID = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    "text",
    [
        "dserver://host",
        "dserver://host:5000",
        "dserver://[::1]:5000/s3/bucket",
        "dserver://host/s3/bucket",
        "dserver://host/s3/bucket/prefix/more",
        f"dserver://host:5000/s3/bucket/{UUID}",
        f"dserver://host:5000/{UUID}",
    ],
)
def test_uri_survives_parsing(text: str) -> None:
    assert str(DserverURI.parse(text)) == text
    assert DserverURI.parse(text + "/") == DserverURI.parse(text)


def test_uri_parts() -> None:
    uri = DserverURI.parse(f"dserver://host:1/s3/bucket/prefix/{UUID}")

    assert (uri.server, uri.base_uri, uri.uuid) == ("host:1", "s3://bucket/prefix", UUID)


def test_uuid_alone_names_a_dataset_in_any_case() -> None:
    uuid = UUID.replace("1", "a")

    assert DserverURI.parse(f"dserver://h/{uuid.upper()}") == DserverURI(
        "h", None, DatasetUUID(uuid)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host/s3/bucket",
        "s3://bucket",
        "dserver://",
        "dserver://user@host/s3/b",
        "dserver://host/s3",
        "dserver://host/s3//b",
        "dserver://host/s3/../b",
        f"dserver://host/s3/{UUID}",
    ],
)
def test_malformed_uri_is_refused_with_the_uri_in_the_message(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        DserverURI.parse(text)
    assert text in str(refusal.value)


@pytest.mark.parametrize("base_uri", ["bucket", "s3://", "://b", "s3://b//c"])
def test_malformed_base_uri_is_a_protocol_error(base_uri: str) -> None:
    with pytest.raises(ProtocolError):
        split_base_uri(base_uri)


@pytest.mark.parametrize(
    "value",
    [
        1_700_000_000.5,
        "1700000000.5",
        "2023-11-14T22:13:20.500000+00:00",
        "2023-11-14T22:13:20.500000Z",
        "2023-11-14T22:13:20.500",
    ],
)
def test_every_form_of_date_is_understood(value: object) -> None:
    assert parse_timestamp(value) == pytest.approx(1_700_000_000.5)


def test_rfc_1123_date_is_understood() -> None:
    assert parse_timestamp("Tue, 14 Nov 2023 22:13:20 GMT") == 1_700_000_000


@pytest.mark.parametrize("value", [None, True, "soon", {}, ""])
def test_what_is_no_date_is_a_protocol_error(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_timestamp(value)


@pytest.mark.parametrize(
    "relpath",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "a" * 256,
        "ä" * 128,
        "\ud800",
    ],
)
def test_hostile_relpath_is_not_usable(relpath: str) -> None:
    assert not relpath_is_usable(relpath)


@pytest.mark.parametrize("relpath", ["a", "a/b", "...", "a b/ü/\n", "a" * 255, "x/" * 100 + "y"])
def test_odd_but_right_relpath_is_usable(relpath: str) -> None:
    assert relpath_is_usable(relpath)


def test_component_with_a_slash_is_not_usable() -> None:
    assert not component_is_usable("a/b")


def test_identifier_is_dtools() -> None:
    assert identifier_of("hello.txt") == "3857b672471862eab426eba0622e44bd2cedbd5d"


@pytest.mark.parametrize(
    "change",
    [{"uuid": "x"}, {"name": 5}, {"frozen_at": None}, {"number_of_items": -1}, {"uri": None}],
)
def test_malformed_listing_entry_is_a_protocol_error(change: dict[str, object]) -> None:
    entry: dict[str, object] = {
        "uuid": UUID,
        "uri": f"s3://b/{UUID}",
        "base_uri": "s3://b",
        "name": "n",
        "creator_username": "c",
        "frozen_at": 1.0,
    }
    assert Dataset.from_json(entry).created_at == 1.0

    with pytest.raises(ProtocolError):
        Dataset.from_json({**entry, **change})


@pytest.mark.parametrize("change", [{"size_in_bytes": None}, {"relpath": 1}, {"hash": None}])
def test_malformed_manifest_entry_is_a_protocol_error(change: dict[str, object]) -> None:
    entry: dict[str, object] = {
        "relpath": "a",
        "size_in_bytes": 1,
        "hash": "00",
        "utc_timestamp": 1,
    }
    assert Item.from_json("i", entry).size_in_bytes == 1

    with pytest.raises(ProtocolError):
        Item.from_json("i", {**entry, **change})
