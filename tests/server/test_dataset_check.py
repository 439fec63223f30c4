"""What may be registered of a dataset, whichever way it comes in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from dserverfs.base import limits
from dserverfs.base.errors import UsageError
from dserverfs.base.model import identifier_of
from dserverfs.server.database.dataset_check import check_dataset
from tests.support import postgresql
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded, new_uuid

BASE_URI = "s3://bucket"


def item(relpath: object = "a", **others: object) -> dict[str, Any]:
    entry = {"relpath": relpath, "size_in_bytes": 1, "hash": "0" * 32, "utc_timestamp": 0.5}
    return {identifier_of(str(relpath)): {**entry, **others}}


def info(base_uri: str = BASE_URI, **others: Any) -> dict[str, Any]:
    uuid = new_uuid()
    items = others.pop("items", item())
    return {
        "uuid": uuid,
        "base_uri": base_uri,
        "uri": f"{base_uri}/{uuid}",
        "name": "by-hand",
        "type": "dataset",
        "readme": "",
        "manifest": {"items": items, "hash_function": "sha256sum_hexdigest"},
        "creator_username": "sneezy",
        "frozen_at": "1500000000.125",
        "annotations": {},
        "tags": [],
        **others,
    }


INSIDE: list[dict[str, Any]] = [
    {"items": {}},
    {"items": item("x/" * 499 + "x")},
    {"items": item("/".join(["x" * 200] * 8))},  # too long for the metadata of our own store
    {"items": item(size_in_bytes=limits.MAX_SIZE_BYTES)},
    {"items": item(utc_timestamp=-1)},
    {"items": item(utc_timestamp=limits.FIRST_DATE_S)},
    {"items": item(utc_timestamp=limits.LAST_DATE_S)},
    {"items": item(".refused-x")},
    {"frozen_at": str(limits.FIRST_DATE_S), "created_at": str(limits.LAST_DATE_S)},
    {"name": "n" * 80},
    {"annotations": {"a.b": {"deep": [[[1]]]}}},
    {"size_in_bytes": limits.MAX_SIZE_BYTES, "number_of_items": limits.MAX_COUNT},
]
OUTSIDE: list[dict[str, Any]] = [
    *({"items": item(relpath)} for relpath in ("/etc/x", "../../x", "a/../b", "", "a//b", "a/")),
    *({"items": item(relpath)} for relpath in ("x" * 256, "x/" * 500 + "x", "a\0")),
    {"items": {"0" * 40: item()[identifier_of("a")]}},
    {"items": {**item("a"), **item("a/b")}},
    *({"items": item(size_in_bytes=size)} for size in (-1, 1 << 63, 10**30, None)),
    {"items": {**item("a", size_in_bytes=1 << 62), **item("b", size_in_bytes=1 << 62)}},
    *({"items": item(utc_timestamp=moment)} for moment in (math.nan, math.inf, 1e300, -1e12)),
    {"items": item(hash="x" * 129)},
    {"manifest": {"hash_function": "md5sum_hexdigest"}},
    *({"frozen_at": moment} for moment in ("nan", "inf", "1e300", "soon", "1" * 5000)),
    {"created_at": "-1e300"},
    *({"name": name} for name in ("", "a/b", "n" * 81, "a\nb", "\x1b[2J")),
    {"tags": ["a tag"]},
    {"tags": [".."]},
    {"annotations": {"a b": 1}},
    {"creator_username": "a\nb"},
    {"creator_username": "u" * 256},
    {"size_in_bytes": 10**30},
    {"number_of_items": -1},
    {"uuid": "11111111-2222-3333-4444-555555555555"},
    {"uri": "s3://another/11111111-2222-3333-4444-555555555555"},
]


@pytest.mark.parametrize("others", INSIDE)
def test_dataset_within_the_limits_may_be_registered(others: dict[str, Any]) -> None:
    check_dataset(info(**others))


@pytest.mark.parametrize(
    "others",
    [
        *OUTSIDE,
        {"annotations": {"a": math.nan}},
        {"annotations": {"a": "\ud800"}},
        {"readme": "\ud800"},
        {"readme": "x" * (limits.MAX_README_BYTES + 1)},
    ],
)
def test_dataset_beyond_a_limit_may_not_be_registered(others: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refusal:
        check_dataset(info(**others))

    assert refusal.value.status == 400


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("checked"))
    yield client
    client.close()


def test_nothing_of_a_dataset_beyond_a_limit_is_registered(client: AppClient) -> None:
    for others in OUTSIDE[::4]:
        body = info(client.base_uri, **others)

        answer = client.request("PUT", f"/uris/{encoded(body['uri'])}", body)

        assert answer.status_code in (400, 403, 404, 422), others
        manifest = client.request("GET", f"/manifests/{encoded(body['uri'])}")
        assert manifest.status_code in (403, 404)


def test_whatever_is_within_the_limits_is_registered_and_listed(client: AppClient) -> None:
    uris = set()
    for others in INSIDE:
        if postgresql.is_wanted() and others.get("number_of_items", 0) >= 1 << 31:
            continue  # dservercore's column has 32 bits there
        body = info(client.base_uri, **others)
        answer = client.request("PUT", f"/uris/{encoded(body['uri'])}", body)
        assert answer.status_code == 201, others
        uris.add(body["uri"])

    query = {"base_uris": [client.base_uri]}
    listed = client.request("POST", "/uris?page_size=100", query)

    assert {entry["uri"] for entry in listed.json} == uris
    for uri in uris:
        assert client.request("GET", f"/uris/{encoded(uri)}").status_code == 200
    assert client.request("GET", "/me/summary").status_code == 200
