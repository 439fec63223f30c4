"""Two apps on one data directory, as two processes have them: neither relies on what it knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from dserverfs.server import app
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.stores import Stores
from tests.support.server_app import AppClient, put_all
from tests.support.servers import ServerHandle, encoded, new_uuid, upload_body

BEFORE = {"a.txt": b"alpha", "b.txt": b"beta"}
AFTER = {"a.txt": b"other", "b.txt": b"beta"}


@pytest.fixture
def client(server: ServerHandle, tmp_path: Path) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path)
    yield client
    client.close()


@pytest.fixture
def other(client: AppClient, tmp_path: Path) -> Flask:
    stores = Stores(client.store, lambda bucket: None)
    return app.create(DataDirectory(tmp_path), stores, client.settings)


def ask(asked: Flask, client: AppClient, method: str, path: str, body: Any = None) -> Any:
    """Ask one of the apps, with a token of the other."""
    headers = {"Authorization": f"Bearer {client.token('grumpy')}"}
    return asked.test_client().open(path, method=method, json=body, headers=headers)


def test_upload_that_moves_is_found_by_the_other_process(client: AppClient, other: Flask) -> None:
    announce = f"/signed-urls/upload/{encoded(client.base_uri)}"
    uuid = new_uuid()
    begun = client.post(announce, upload_body(BEFORE, uuid=uuid)).json
    put_all(begun, BEFORE, b"")
    uri = begun["uri"]
    for each in (client.app, other):  # both know where it is
        assert len(ask(each, client, "GET", f"/signed-urls/upload/{encoded(uri)}").json["stored"])

    again = client.post(announce, upload_body(AFTER, uuid=uuid)).json  # it moves
    put_all(again, AFTER, b"")
    done = ask(other, client, "POST", "/signed-urls/upload-complete", {"uri": uri})

    assert done.status_code == 200, done.text
    for each in (client.app, other):
        urls = ask(each, client, "GET", f"/signed-urls/dataset/{encoded(uri)}").json["item_urls"]
        found = sorted(requests.get(url, timeout=30).content for url in urls.values())
        assert found == sorted(AFTER.values())


def test_token_that_one_process_revokes_is_refused_by_the_other(
    client: AppClient, other: Flask
) -> None:
    assert ask(other, client, "GET", "/me").status_code == 200
    login = {"username": "grumpy", "password": "wrong"}

    with client.app.app_context():
        from dservercore.extensions import sql_db

        from dserverfs.server.database import tokens

        tokens.revoke("grumpy")
        sql_db.session.commit()

    assert ask(other, client, "GET", "/me").status_code == 401
    guessed = [
        ask(each, client, "POST", "/token", login).status_code
        for _ in range(6)
        for each in (client.app, other)
    ]
    assert guessed == [401] * 10 + [429] * 2
