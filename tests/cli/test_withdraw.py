"""`dserverfs withdraw`: a dataset leaves the catalogue, and nothing of it the store."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dserverfs.cli import withdraw
from dserverfs.cli.main import main
from tests.support.quirky_server import BASE_URI, TOKEN, QuirkyServer, says
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle, encoded, new_uuid, upload

pytest_plugins = ["tests.support.resolver_fixtures"]


@pytest.fixture(autouse=True)
def settings(server: ServerHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DSERVER_TOKEN", server.token)
    monkeypatch.setenv("DSERVER_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def base_uri(server: ServerHandle) -> str:
    """A base URI of the test alone."""
    return server.add_base_uri(search=[server.username], register=[server.username])


def named(server: ServerHandle, uri: str) -> str:
    """Return the dserver URI of a dataset."""
    return f"dserver://{server.base_uri.split('/')[2]}/{uri.replace('://', '/')}"


def is_listed(server: ServerHandle, uri: str) -> bool:
    return server.get(f"/uris/{encoded(uri)}").status_code == 200


def test_withdrawn_dataset_is_out_of_the_catalogue_and_comes_back_whole(
    server: ServerHandle, base_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = upload(server, {"a": b"content"}, base_uri=base_uri, tags=["one"])
    manifest = server.get(f"/manifests/{encoded(uri)}").json()

    assert main(["withdraw", "--yes", named(server, uri)]) == 0

    said = capsys.readouterr().out
    assert said == (
        f"withdrawn: {named(server, uri)} (a-dataset); what is stored of it stays in {uri}\n"
    )
    assert not is_listed(server, uri)
    assert server.post("/uris", {"base_uris": [base_uri]}).json() == []
    stored = StoredItems.of(server, uri)._replace(bucket=base_uri.removeprefix("s3://"))
    assert stored.client.get_object(**stored.at("a"))["Body"].read() == b"content"
    assert main(["withdraw", "--yes", named(server, uri)]) == 1
    assert f"{named(server, uri)}: no such dataset" in capsys.readouterr().err
    assert main(["serve", "--data", str(server.data), "index", base_uri]) == 0
    assert server.get(f"/manifests/{encoded(uri)}").json()["items"] == manifest["items"]
    assert server.get(f"/tags/{encoded(uri)}").json() == {"tags": ["one"]}


def test_datasets_that_name_it_are_listed(
    server: ServerHandle, base_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uuid = new_uuid()
    uri = upload(server, {"a": b"a"}, base_uri=base_uri, uuid=uuid)
    copy = upload(server, {"a": b"a"}, uuid=uuid)
    source = {"source_dataset_uuid": uuid}
    derived = upload(
        server, {"a": b"b"}, base_uri=base_uri, name="annotated-with-it", annotations=source
    )
    noted = upload(server, {"a": b"b"}, name="readme-with-it", readme=f"see {uri}".encode())
    upload(server, {"a": b"b"}, base_uri=base_uri, name="without-it", readme=new_uuid().encode())

    assert main(["withdraw", "--yes", named(server, uri)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:-1]) == [
        f"has the same uuid, and stays: {named(server, copy)} (a-dataset)",
        *sorted(
            f"refers to it: {named(server, each)} ({name})"
            for each, name in ((derived, "annotated-with-it"), (noted, "readme-with-it"))
        ),
    ]
    assert is_listed(server, derived)
    assert is_listed(server, copy)


@pytest.mark.parametrize("answer", [None, "", "n\n", "\n", "yes", "y\n"])
def test_nothing_is_withdrawn_unless_somebody_says_so(
    server: ServerHandle,
    base_uri: str,
    answer: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = upload(server, {"a": b"a"}, base_uri=base_uri)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer or ""))
    monkeypatch.setattr(withdraw, "has_terminal", lambda: answer is not None)
    is_meant = answer in ("yes", "y\n")

    assert main(["withdraw", named(server, uri)]) == (0 if is_meant else 1)

    said = capsys.readouterr()
    assert is_listed(server, uri) is not is_meant
    assert ("without --yes" in said.err) is (answer is None)
    assert (f"Withdraw {named(server, uri)} (a-dataset)? " in said.err) is (answer is not None)


def test_who_may_not_register_withdraws_nothing(
    server: ServerHandle, base_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = upload(server, {"a": b"a"}, base_uri=base_uri)
    rights = {
        "users_with_search_permissions": [server.username],
        "users_with_register_permissions": [],
    }
    server.request("PUT", f"/base-uris/{encoded(base_uri)}", rights).raise_for_status()

    assert main(["withdraw", "--yes", named(server, uri)]) == 1

    assert "cannot be withdrawn without the right to register" in capsys.readouterr().err
    assert is_listed(server, uri)


def test_base_uri_is_not_withdrawn(
    server: ServerHandle, base_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["withdraw", "--yes", named(server, base_uri)]) == 1
    assert "is not one dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "said"),
    [(405, "has no route to withdraw a dataset"), (200, "and has it still")],
)
def test_server_that_does_not_do_it_is_told(
    quirky: QuirkyServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    said: str,
) -> None:
    uuid = new_uuid()
    quirky.add(uuid, {"a": b"a"})
    quirky.broken["DELETE /uris"] = says(status)
    monkeypatch.setenv("DSERVER_URL", quirky.url)
    monkeypatch.setenv("DSERVER_TOKEN", TOKEN)
    uri = f"dserver://{quirky.url.removeprefix('http://')}/{BASE_URI.replace('://', '/')}/{uuid}"

    assert main(["withdraw", "--yes", uri]) == 1

    assert said in capsys.readouterr().err
