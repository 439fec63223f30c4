"""Listing and searching, through dservercore's own routes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from dserverfs.base.limits import MAX_SIZE_BYTES
from dserverfs.base.model import identifier_of
from dserverfs.server.database.full_text import question_of
from tests.support.servers import (
    ServerHandle,
    begin,
    complete,
    encoded,
    new_uuid,
    upload,
    upload_body,
)


@pytest.fixture(scope="module")
def base_uri(server: ServerHandle) -> str:
    """Return a base URI that holds the three datasets below and nothing else."""
    base_uri = server.add_base_uri(search=[server.username, "doc"], register=[server.username])
    for name, creator, frozen_at, tags, readme, relpath in (
        ("alpha", "grumpy", 3.25, ["x", "y"], "crystals of yeast", "run/plate.csv"),
        ("beta", "happy", 2.25, ["x"], "annotated crystal", "image.tif"),
        ("gamma", "grumpy", 1.25, [], 'says "light sheet" here', "image.tif"),
    ):
        upload(
            server,
            {relpath: b"x" * len(name)},
            readme=readme.encode(),
            base_uri=base_uri,
            name=name,
            creator_username=creator,
            frozen_at=frozen_at,
            created_at=0.5,
            tags=tags,
            annotations={"instrument": f"scope-{name}"},
        )
    return base_uri


def find(server: ServerHandle, path: str = "/uris", **query: Any) -> requests.Response:
    answer = server.post(path, query)
    assert answer.status_code == 200, answer.text
    return answer


def names(answer: requests.Response) -> list[str]:
    return [dataset["name"] for dataset in answer.json()]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["alpha", "beta", "gamma"]),
        ({"free_text": "crystal"}, ["alpha", "beta"]),
        ({"free_text": "Crystals nothing"}, ["alpha", "beta"]),
        ({"free_text": "yeast gamma"}, ["alpha", "gamma"]),
        ({"free_text": '"light sheet"'}, ["gamma"]),
        ({"free_text": '"sheet light"'}, []),
        ({"free_text": '"light sheet" "image"'}, ["gamma"]),  # of the README and of a relpath
        ({"free_text": "image"}, ["beta", "gamma"]),
        ({"free_text": "scope-beta"}, ["beta"]),
        ({"free_text": "grumpy"}, ["alpha", "gamma"]),
        ({"free_text": "y"}, ["alpha"]),
        ({"free_text": '" OR * NEAR( -- '}, []),
        ({"free_text": ""}, []),
        ({"creator_usernames": ["grumpy"]}, ["alpha", "gamma"]),
        ({"creator_usernames": ["grumpy", "happy"]}, ["alpha", "beta", "gamma"]),
        ({"tags": ["x"]}, ["alpha", "beta"]),
        ({"tags": ["x", "y"]}, ["alpha"]),
        ({"tags": ["x", "y", "x"]}, ["alpha"]),
        ({"tags": ["z"]}, []),
        ({"tags": ["x", "a\0"]}, []),
        ({"tags": ["x", *map(str, range(30))]}, []),
        ({"tags": ["x"], "creator_usernames": ["happy"], "free_text": "crystal"}, ["beta"]),
        ({"uuids": [new_uuid()]}, []),
    ],
)
def test_search_filters(
    server: ServerHandle, base_uri: str, query: dict[str, Any], found: list[str]
) -> None:
    answer = find(server, "/uris?sort=name", base_uris=[base_uri], **query)

    assert names(answer) == found
    assert json.loads(answer.headers["X-Pagination"])["total"] == len(found)


def test_search_by_uuid(server: ServerHandle, base_uri: str) -> None:
    first, second, _ = find(server, "/uris?sort=name", base_uris=[base_uri]).json()

    found = find(server, uuids=[first["uuid"], second["uuid"]], base_uris=[base_uri])

    assert sorted(names(found)) == ["alpha", "beta"]


def test_search_answers_what_the_listing_answers(server: ServerHandle, base_uri: str) -> None:
    (found,) = find(server, base_uris=[base_uri], tags=["y"]).json()

    listed = server.get(f"/uris/{encoded(found['uri'])}").json()

    assert found == listed
    assert found["frozen_at"] == 3.25
    assert found["created_at"] == 0.5
    assert found["size_in_bytes"] == 5


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("name", ["alpha", "beta", "gamma"]),
        ("-name", ["gamma", "beta", "alpha"]),
        ("frozen_at", ["gamma", "beta", "alpha"]),
        ("%2Bcreator_username,-name", ["gamma", "alpha", "beta"]),
        ("-creator_username,frozen_at", ["beta", "gamma", "alpha"]),
        ("created_at,-frozen_at", ["alpha", "beta", "gamma"]),
    ],
)
def test_search_sorts(server: ServerHandle, base_uri: str, sort: str, order: list[str]) -> None:
    assert names(find(server, f"/uris?sort={sort}", base_uris=[base_uri])) == order


def test_search_pages(server: ServerHandle, base_uri: str) -> None:
    first = find(server, "/uris?sort=name&page_size=2", base_uris=[base_uri])
    second = find(server, "/uris?sort=name&page_size=2&page=2", base_uris=[base_uri])
    beyond = find(server, "/uris?sort=name&page_size=2&page=3", base_uris=[base_uri])

    assert [names(first), names(second), names(beyond)] == [["alpha", "beta"], ["gamma"], []]
    pages = json.loads(first.headers["X-Pagination"])
    assert (pages["total"], pages["total_pages"], pages["next_page"]) == (3, 2, 2)


def test_listing_of_all_pages_as_a_search_does(server: ServerHandle, base_uri: str) -> None:
    doc = server.token_for("doc")
    server.request("PUT", "/users/stranger", {}).raise_for_status()

    pages = [
        server.get(f"/uris?sort=-name&page_size=2&page={page}", token=doc) for page in (1, 2, 3)
    ]
    nothing = server.get("/uris", token=server.token_for("stranger"))

    assert [names(page) for page in pages[:2]] == [["gamma", "beta"], ["alpha"]]
    assert json.loads(pages[1].headers["X-Pagination"])["total"] == 3
    assert pages[2].status_code == 404
    assert nothing.json() == []
    assert json.loads(nothing.headers["X-Pagination"])["total"] == 0


def test_search_finds_only_what_is_permitted(server: ServerHandle, base_uri: str) -> None:
    doc, nobody = server.token_for("doc"), server.token_for("nobody")

    permitted = server.post("/uris?page_size=100", {"free_text": "image"}, token=doc)
    elsewhere = server.post("/uris", {"base_uris": [server.backend_uri]}, token=doc)

    assert sorted(names(permitted)) == ["beta", "gamma"]
    assert elsewhere.json() == []
    assert server.post("/uris", {"free_text": "image"}, token=nobody).status_code == 401


def test_summary_counts(server: ServerHandle, base_uri: str) -> None:
    summary = server.get("/me/summary", token=server.token_for("doc")).json()

    assert summary["number_of_datasets"] == 3
    assert summary["total_size_in_bytes"] == 14
    assert summary["datasets_per_creator"] == {"grumpy": 2, "happy": 1}
    assert summary["datasets_per_tag"] == {"x": 2, "y": 1}


def test_summary_adds_up_more_than_an_integer_of_the_database_holds(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=["sum"], register=[server.username])
    for _ in range(2):
        body = {**registration(base_uri), "size_in_bytes": MAX_SIZE_BYTES}
        server.request("PUT", f"/uris/{encoded(body['uri'])}", body).raise_for_status()

    summary = server.get("/me/summary", token=server.token_for("sum")).json()

    assert summary["total_size_in_bytes"] == 2 * MAX_SIZE_BYTES
    assert summary["size_in_bytes_per_tag"] == {"once": 2 * MAX_SIZE_BYTES}


def test_metadata_routes_answer(server: ServerHandle, base_uri: str) -> None:
    (found,) = find(server, base_uris=[base_uri], tags=["y"]).json()
    uri = encoded(found["uri"])

    manifest = server.get(f"/manifests/{uri}").json()

    assert [item["relpath"] for item in manifest["items"].values()] == ["run/plate.csv"]
    assert server.get(f"/readmes/{uri}").json() == {"readme": "crystals of yeast"}
    assert server.get(f"/tags/{uri}").json() == {"tags": ["x", "y"]}
    annotations = server.get(f"/annotations/{uri}").json()
    assert annotations == {"annotations": {"instrument": "scope-alpha"}}


def test_a_deleted_dataset_leaves_no_ghost(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    uri = upload(server, {"a": b"a"}, readme=b"spectre", base_uri=base_uri, tags=["t"])

    deleted = server.request("DELETE", f"/uris/{encoded(uri)}")

    assert deleted.status_code == 200
    assert find(server, base_uris=[base_uri]).json() == []
    assert find(server, free_text="spectre").json() == []
    assert find(server, tags=["t"], base_uris=[base_uri]).json() == []
    for route in ("/uris", "/manifests", "/readmes", "/tags", "/annotations"):
        assert server.get(f"{route}/{encoded(uri)}").status_code == 404
    assert server.get(f"/signed-urls/dataset/{encoded(uri)}").status_code == 404
    assert complete(server, uri).status_code == 400


def test_a_deleted_dataset_can_be_uploaded_again(server: ServerHandle) -> None:
    body = upload_body({"a": b"a"})
    uri = upload(server, {"a": b"a"}, uuid=body["uuid"])
    server.request("DELETE", f"/uris/{encoded(uri)}").raise_for_status()

    begun = begin(server, body)

    assert len(begun["stored"]) == 1
    assert complete(server, uri).status_code == 200


def registration(base_uri: str) -> dict[str, Any]:
    """Return the body of a registration by hand, of a new dataset of one item."""
    uuid = new_uuid()
    item = {"relpath": "by-hand.txt", "size_in_bytes": 7, "hash": "0" * 32, "utc_timestamp": 1.0}
    return {
        "uuid": uuid,
        "base_uri": base_uri,
        "uri": f"{base_uri}/{uuid}",
        "name": "by-hand",
        "type": "dataset",
        "readme": "sneezes",
        "manifest": {
            "items": {identifier_of("by-hand.txt"): item},
            "hash_function": "md5sum_hexdigest",
            "dtoolcore_version": "3.0.0",
        },
        "creator_username": "sneezy",
        "frozen_at": "1500000000.125",
        "annotations": {},
        "tags": ["once"],
    }


def test_a_dataset_registered_by_hand_is_found_and_replaced(server: ServerHandle) -> None:
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    body = registration(base_uri)
    uri = body["uri"]

    created = server.request("PUT", f"/uris/{encoded(uri)}", body)
    first = find(server, free_text="sneezes").json()
    again = server.request(
        "PUT", f"/uris/{encoded(uri)}", {**body, "readme": "coughs", "tags": ["twice"]}
    )

    assert (created.status_code, again.status_code) == (201, 200)
    assert [dataset["size_in_bytes"] for dataset in first] == [7]
    assert first[0]["created_at"] == 1500000000.125
    assert find(server, free_text="sneezes").json() == []
    assert find(server, tags=["once"], base_uris=[base_uri]).json() == []
    assert names(find(server, tags=["twice"], base_uris=[base_uri])) == ["by-hand"]
    assert server.get("/me/summary").status_code == 200


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("one two", [["one", "two"]]),
        ('"one two" three', [["one two"]]),
        ('"one two" "three"', [["one two"], ["three"]]),
        ("e-coli", [["e-coli"]]),
        ('un"closed', [["un", "closed"]]),
        ('"--"', []),
        ("a\0b c", [["c"]]),
        ("", []),
    ],
)
def test_question_is_of_phrases_or_of_any_word(text: str, phrases: list[list[str]]) -> None:
    assert question_of(text).all_of == phrases
