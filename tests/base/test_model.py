"""URIs, datasets and items."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.model import UUID as DatasetUUID
from dserverfs.base.model import (
    Dataset,
    DserverURI,
    Item,
    identifier_of,
    mtime_ns_of,
    seconds_of,
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


@given(ns=st.integers(min_value=10**16, max_value=9 * 10**18))
def test_date_of_an_item_is_the_same_after_it_was_the_time_of_a_file(ns: int) -> None:
    utc_timestamp = seconds_of(ns)

    assert seconds_of(mtime_ns_of(utc_timestamp)) == utc_timestamp
