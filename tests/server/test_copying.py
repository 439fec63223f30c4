"""A server moves from SQLite to PostgreSQL, however often that is broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import UsageError
from dserverfs.cli.main import main
from dserverfs.server import management
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.settings import DATABASE, ServerSettings
from tests.support import postgresql
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded

QUESTIONS = [
    {},
    {"free_text": "wolves"},
    {"free_text": '"grey wolves"'},
    {"free_text": "hidden"},
    {"tags": ["wild"]},
    {"creator_usernames": ["grumpy"]},
]


class _BrokenOff(Exception):
    pass


def answers(client: AppClient) -> dict[str, Any]:
    """Return what users are told, but for when they ask."""
    found: dict[str, Any] = {
        str(question): client.post("/uris", question).json for question in QUESTIONS
    }
    for entry in found["{}"]:
        uri = encoded(entry["uri"])
        for route in ("readmes", "tags", "annotations", "manifests"):
            found[f"{route} {uri}"] = client.get(f"/{route}/{uri}").json
    for path in ("/me/summary", "/base-uris", "/users"):
        found[path] = client.request("GET", path, username="boss").json
    with client.app.app_context():
        found["users"] = management.users()
        found["rights"] = management.rights()
    login = {"username": "boss", "password": "the password of the boss"}
    found["login"] = client.request("POST", "/token", login, username=None).status_code
    return found


@pytest.fixture
def before(server: ServerHandle, tmp_path: Path) -> AppClient:
    """What a server has in SQLite."""
    if postgresql.is_wanted():
        pytest.skip("this run is about PostgreSQL")
    with DataDirectory(tmp_path / "data").locked():
        pass
    client = AppClient(server, tmp_path / "data")
    client.add_user("boss", is_admin=True)
    client.grant("boss", search=True, register=False)
    with client.app.app_context():
        management.set_password(DataDirectory(client.directory), "boss", "the password of the boss")
    described = {"tags": ["wild"], "annotations": {"weight": {"kg": 41.5}}}
    client.upload({"a": b"a", "deep/hidden.csv": b"1,2"}, readme=b"grey wolves\n", **described)
    client.upload({"b": b"b"}, readme=b"---\nanimal: wolves\n")
    return client


def test_server_that_moves_to_postgresql_answers_as_before(
    before: AppClient, server: ServerHandle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = postgresql.shared.get().new_database()
    settings = ServerSettings({DATABASE: address}.get)
    command = ["serve", "--data", str(before.directory), "copy-database", "--database", address]
    before.close()

    for steps in (3, 7):
        seen: list[str] = []

        def on_table(table: str, *rows: int, seen: list[str] = seen, steps: int = steps) -> None:
            seen.append(table)
            if len(seen) > steps:
                raise _BrokenOff

        with pytest.raises(_BrokenOff):
            management.copy_database(DataDirectory(before.directory), settings, on_table)
        with pytest.raises(UsageError, match=r"is a copy that is not finished: run"):
            AppClient(server, tmp_path / f"server-{steps}", database=address)
    changed = AppClient(server, tmp_path / "copied", beside=before)
    changed_directory = tmp_path / "copied"
    uri = changed.post("/uris", {"tags": ["wild"]}).json[0]["uri"]
    assert changed.request("PUT", f"/tags/{encoded(uri)}", {"tags": ["tame"]}).status_code == 200
    changed.upload({"c": b"c"}, readme=b"wolves, hidden\n")
    changed.add_user("late")
    asked = answers(changed)
    changed.close()
    command[2] = str(changed_directory)

    assert main(command) == 0

    assert "3 users, 1 base URIs and 3 datasets copied" in capsys.readouterr().out
    after = AppClient(server, tmp_path / "after", beside=changed)
    assert answers(after) == asked
    after.add_user("new")
    after.upload({"d": b"d"}, tags=["wild"])
    assert len(after.post("/uris", {"tags": ["wild"]}).json) == 1
    after.close()
    assert main(command) == 0
    assert "has this database already" in capsys.readouterr().out


def test_postgresql_of_another_server_is_left_alone(
    before: AppClient, server: ServerHandle, tmp_path: Path
) -> None:
    address = postgresql.shared.get().new_database()
    AppClient(server, tmp_path / "other", database=address).close()
    before.close()

    with pytest.raises(UsageError, match=r"has base_uri entries of a server; make an empty one"):
        management.copy_database(
            DataDirectory(before.directory),
            ServerSettings({DATABASE: address}.get),
            lambda *rows: None,
        )

    assert DataDirectory(before.directory).kept_address() is None
