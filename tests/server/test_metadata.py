"""Changes of a frozen dataset's metadata: by whom, how, and that bucket and database agree."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dservercore.utils
import dtoolcore
import pytest
from sqlalchemy import text

from dserverfs.base.errors import Unreachable
from dserverfs.base.model import identifier_of
from dserverfs.server.database import changes
from dserverfs.server.database.changes import Changes, Description
from dserverfs.server.database.stored_metadata import StoredMetadata
from tests.support.server_app import AppClient
from tests.support.server_store import set_dtool_s3, storage_of
from tests.support.servers import ServerHandle, encoded, new_uuid, upload

CONTENTS = {"a.txt": b"alpha", "dir/é.bin": b"beta"}
A, B = (identifier_of(relpath) for relpath in CONTENTS)


@pytest.fixture
def uri(server: ServerHandle) -> str:
    return upload(
        server,
        CONTENTS,
        readme=b"first: yes\n",
        name="before",
        tags=["one"],
        annotations={"stars": 5, "gone": True},
        overlays={"old": {A: 1, B: 2}},
    )


@pytest.fixture
def dataset(
    server: ServerHandle, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dtoolcore.DataSet:
    """The same dataset, by dtool-s3 straight from the bucket."""
    set_dtool_s3(monkeypatch, storage_of(server), tmp_path)
    return dtoolcore.DataSet.from_uri(uri)


def put(server: ServerHandle, path: str, body: Any) -> Any:
    answer = server.request("PUT", path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def delete(server: ServerHandle, path: str) -> Any:
    answer = server.request("DELETE", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def found(server: ServerHandle, **query: Any) -> list[str]:
    return [dataset["uri"] for dataset in server.post("/uris?page_size=100", query).json()]


def test_readme_is_replaced_kept_and_found(
    server: ServerHandle, uri: str, dataset: dtoolcore.DataSet
) -> None:
    word = f"zebrafish{new_uuid()[:8]}"
    before = time.time()

    for _ in range(2):  # the second changes nothing
        answer = put(server, f"/readmes/{encoded(uri)}", {"readme": f"über: {word}\n"})

    broker = dataset._storage_broker
    keys = broker.s3resource.Bucket(broker.bucket).objects.filter(Prefix=broker.get_readme_key())
    (backup,) = [each.key for each in keys if each.key != broker.get_readme_key()]
    assert answer == {"readme": f"über: {word}\n"}
    assert dataset.get_readme_content() == f"über: {word}\n"
    assert broker.get_text(backup) == "first: yes\n"
    assert before <= float(backup.rpartition("README.yml-")[2]) <= time.time()
    assert server.get(f"/readmes/{encoded(uri)}").json() == answer
    assert found(server, free_text=word) == [uri]


def test_tags_are_put_and_taken_one_by_one_or_all(
    server: ServerHandle, uri: str, dataset: dtoolcore.DataSet
) -> None:
    tags = f"/tags/{encoded(uri)}"

    assert server.post(f"{tags}/t.wo").json() == {"tags": ["one", "t.wo"]}
    assert dataset.list_tags() == ["one", "t.wo"]
    assert found(server, tags=["one", "t.wo"], uuids=[uri.rpartition("/")[2]]) == [uri]
    assert delete(server, f"{tags}/one") == {"tags": ["t.wo"]}
    assert delete(server, f"{tags}/one") == {"tags": ["t.wo"]}
    assert put(server, tags, {"tags": ["z", "a", "z"]}) == {"tags": ["a", "z"]}
    assert dataset.list_tags() == ["a", "z"]
    assert server.get(tags).json() == {"tags": ["a", "z"]}
    assert uri not in found(server, tags=["t.wo"])


@pytest.mark.parametrize("value", [5, 2.5, True, None, "5", ["a", 1], {"é": {"b": [None]}}])
def test_annotation_keeps_its_type(
    server: ServerHandle, uri: str, dataset: dtoolcore.DataSet, value: Any
) -> None:
    annotations = f"/annotations/{encoded(uri)}"

    answer = put(server, f"{annotations}/new-one", {"value": value})

    assert answer == {"annotations": {"stars": 5, "gone": True, "new-one": value}}
    assert server.get(annotations).json() == answer
    assert dataset.get_annotation("new-one") == value
    assert delete(server, f"{annotations}/gone")["annotations"].keys() == {"stars", "new-one"}
    assert delete(server, f"{annotations}/gone") == server.get(annotations).json()
    assert sorted(dataset.list_annotation_names()) == ["new-one", "stars"]


@pytest.mark.parametrize("values", [{}, {A: 1}])
def test_overlay_of_some_items_is_taken_as_dtool_does_on_a_disk(
    server: ServerHandle, uri: str, dataset: dtoolcore.DataSet, values: dict[str, Any]
) -> None:
    put(server, f"/overlays/{encoded(uri)}/some", {"value": values})

    assert dataset.get_overlay("some") == values


def test_overlay_is_put_and_taken(
    server: ServerHandle, uri: str, dataset: dtoolcore.DataSet
) -> None:
    overlays = f"/overlays/{encoded(uri)}"

    assert put(server, f"{overlays}/new", {"value": {A: "x", B: None}}) == {
        "overlays": ["new", "old"]
    }
    assert dataset.get_overlay("new") == {A: "x", B: None}
    assert delete(server, f"{overlays}/old") == {"overlays": ["new"]}
    assert dataset.list_overlay_names() == ["new"]


def test_dataset_is_renamed_everywhere(
    server: ServerHandle, uri: str, dataset: dtoolcore.DataSet
) -> None:
    name = f"after-{new_uuid()[:8]}"
    admin = dict(dataset._admin_metadata)

    assert put(server, f"/names/{encoded(uri)}", {"name": name}) == {"name": name}

    assert dataset._storage_broker.get_admin_metadata() == {**admin, "name": name}
    assert server.get(f"/uris/{encoded(uri)}").json()["name"] == name
    assert found(server, free_text=f'"{name}"') == [uri]
    listed = server.post("/uris", {"uuids": [admin["uuid"]]}).json()
    assert [each["name"] for each in listed] == [name]


def test_relpaths_are_still_found_after_a_change(server: ServerHandle) -> None:
    word = f"w{new_uuid()[:8]}"
    uri = upload(server, {f"{word}.csv": b""}, tags=["t"])

    put(server, f"/tags/{encoded(uri)}", {"tags": []})

    assert found(server, free_text=word) == [uri]


def test_uri_is_taken_in_the_form_of_core_routes(server: ServerHandle, uri: str) -> None:
    for form in (uri, uri.replace("://", "/")):
        assert put(server, f"/annotations/{form}/n", {"value": form})["annotations"]["n"] == form


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "readmes/{}", {}, 422),
        ("PUT", "readmes/{}", {"readme": 5}, 422),
        ("PUT", "readmes/{}", {"readme": "\ud800"}, 400),
        ("PUT", "tags/{}", {"tags": "x"}, 422),
        ("PUT", "tags/{}", {"tags": ["a b"]}, 400),
        ("POST", "tags/{}/a%20b", None, 400),
        ("POST", "tags/{}/" + "x" * 81, None, 400),
        ("PUT", "annotations/{}/a.b", {"value": 1}, 400),
        ("PUT", "annotations/{}/a", {}, 422),
        ("PUT", "annotations/{}/a", {"value": "\ud800"}, 400),
        ("DELETE", "annotations/{}/a%20b", None, 400),
        ("PUT", "overlays/{}/o", {"value": {A: 1, "0" * 40: 1}}, 400),
        ("PUT", "overlays/{}/o", {"value": 1}, 422),
        ("PUT", "names/{}", {"name": "a b"}, 400),
        ("PUT", "names/{}", {"name": None}, 422),
    ],
)
def test_what_dtool_could_not_hold_is_refused(
    server: ServerHandle, uri: str, method: str, path: str, body: Any, status: int
) -> None:
    answer = server.request(method, "/" + path.format(encoded(uri)), body)

    assert answer.status_code == status, answer.text
    assert server.get(f"/tags/{encoded(uri)}").json() == {"tags": ["one"]}


WRITES: tuple[tuple[str, str, Any], ...] = (
    ("PUT", "/readmes/{}", {"readme": "x"}),
    ("PUT", "/tags/{}", {"tags": ["x"]}),
    ("POST", "/tags/{}/x", None),
    ("DELETE", "/tags/{}/one", None),
    ("PUT", "/annotations/{}/x", {"value": 1}),
    ("DELETE", "/annotations/{}/stars", None),
    ("PUT", "/overlays/{}/x", {"value": {}}),
    ("DELETE", "/overlays/{}/old", None),
    ("PUT", "/names/{}", {"name": "x"}),
)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_dataset_that_is_not_there_is_not_changed(
    server: ServerHandle, method: str, path: str, body: Any
) -> None:
    gone = f"{server.backend_uri}/{new_uuid()}"

    assert server.request(method, path.format(encoded(gone)), body).status_code == 404


def test_dataset_that_is_registered_but_not_stored_is_not_changed(server: ServerHandle) -> None:
    uuid = new_uuid()
    uri = f"{server.backend_uri}/{uuid}"
    info = {
        "uuid": uuid,
        "base_uri": server.backend_uri,
        "uri": uri,
        "name": "by-hand",
        "type": "dataset",
        "readme": "",
        "manifest": {"items": {}, "hash_function": "md5sum_hexdigest", "dtoolcore_version": "3"},
        "creator_username": "grumpy",
        "frozen_at": "1",
        "annotations": {},
        "tags": [],
    }
    server.request("PUT", f"/uris/{encoded(uri)}", info).raise_for_status()

    assert server.post(f"/tags/{encoded(uri)}/x").status_code == 404
    assert server.get(f"/tags/{encoded(uri)}").json() == {"tags": []}
    server.request("DELETE", f"/uris/{encoded(uri)}").raise_for_status()


# When it stops half way


@pytest.fixture
def client(server: ServerHandle, tmp_path: Path, database: str | None) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path, database=database)
    yield client
    client.close()


def in_the_database(client: AppClient, uri: str) -> tuple[str, list[str]]:
    readme = client.get(f"/readmes/{encoded(uri)}").json["readme"]
    return readme, client.get(f"/tags/{encoded(uri)}").json["tags"]


def is_unsure(client: AppClient, uri: str) -> bool:
    with client.app.app_context():
        statement = text("SELECT unsure FROM dserverfs_change WHERE uri = :uri")
        return bool(dservercore.sql_db.session.execute(statement, {"uri": uri}).scalar())


def break_off_after_the_bucket(client: AppClient, uri: str) -> None:
    """Leave things as a server that is killed between the bucket and the database."""
    stores = client.stores
    with client.app.app_context():
        changes.begin(uri)
        StoredMetadata(stores.place(uri)).update_readme("after: yes\n")
        StoredMetadata(stores.place(uri)).put_tag("late")


def test_a_change_that_was_killed_half_way_is_made_up_for_at_the_start(client: AppClient) -> None:
    uri = client.upload(CONTENTS, readme=b"before: yes\n")
    break_off_after_the_bucket(client, uri)
    assert in_the_database(client, uri) == ("before: yes\n", [])

    with client.app.app_context():
        changes.repair_all(client.stores, lambda base_uri: True)

    assert in_the_database(client, uri) == ("after: yes\n", ["late"])
    assert not is_unsure(client, uri)


def test_a_change_that_was_killed_half_way_is_made_up_for_by_the_next(client: AppClient) -> None:
    uri = client.upload(CONTENTS, readme=b"before: yes\n")
    break_off_after_the_bucket(client, uri)

    client.request("PUT", f"/annotations/{encoded(uri)}/n", {"value": 1})

    assert in_the_database(client, uri) == ("after: yes\n", ["late"])
    assert not is_unsure(client, uri)


def test_a_change_that_fails_half_way_is_made_up_for_at_once(client: AppClient) -> None:
    uri = client.upload(CONTENTS, readme=b"before: yes\n")

    def change(stored: StoredMetadata, before: Description) -> Description:
        stored.put_tag("late")
        raise Unreachable("the answer got lost")

    with client.app.app_context(), pytest.raises(Unreachable):
        Changes(client.stores).make(uri, change)

    assert in_the_database(client, uri) == ("before: yes\n", ["late"])
    assert not is_unsure(client, uri)


@pytest.mark.expects_log("may be older than what is stored")
def test_a_store_that_is_away_leaves_a_change_noted(client: AppClient) -> None:
    uri = client.upload(CONTENTS, readme=b"before: yes\n")

    def change(stored: StoredMetadata, before: Description) -> Description:
        stored.put_tag("late")
        client.store_away()
        raise Unreachable("the store is gone")

    with client.app.app_context(), pytest.raises(Unreachable):
        Changes(client.stores).make(uri, change)

    assert is_unsure(client, uri)
    client.store_back()
    assert client.post(f"/tags/{encoded(uri)}/x", None).json == {"tags": ["late", "x"]}
    assert not is_unsure(client, uri)
