"""The server's app in this process, without a web server, on the store of a running server."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dservercore.utils
import urllib3
from flask import Flask

from dserverfs.server import app, management
from dserverfs.server.database import sessions, tokens
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.pages.page_routing import cookie_name
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.settings import DATABASE, ServerSettings
from dserverfs.server.store.signing import Storage
from dserverfs.server.store.stores import Stores
from dserverfs.server.web import TOKEN_LIFE
from tests.support import postgresql
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, encoded, new_uuid, upload_body

PUBLIC_URL = "https://data.example.org"


class _SwitchedStores(Stores):
    """Stores of which another can take the place for a while."""

    away: ObjectStore | None = None

    def of(self, base_uri: str) -> ObjectStore:
        return self.away or super().of(base_uri)


class AppClient:
    """A client of an app with one user and one base URI; counts what is asked of the store."""

    def __init__(
        self,
        server: ServerHandle,
        directory: Path,
        *,
        prefix: str = "",
        database: str | None = None,
        beside: AppClient | None = None,
        **limits: Any,
    ) -> None:
        """`limits` are the store's, as `Storage` has them; `database` is a PostgreSQL's address.

        `beside` another app it has the database, store and keys of that one.
        """
        data = DataDirectory(directory)
        storage = dataclasses.replace(
            storage_of(server), bucket=f"bucket-{new_uuid()}", prefix=prefix, **limits
        )
        self.storage: Storage = storage if beside is None else beside.storage
        self.directory: Path = directory
        if beside is not None:
            database = beside.settings.database()
            shutil.copytree(beside.directory, directory)
        directory.mkdir(exist_ok=True)
        self.store = ObjectStore(self.storage)
        self.stores = _SwitchedStores(self.store, lambda bucket: None)
        self.requests: Counter[str] = Counter()
        self._tokens: dict[str, str] = {}
        self._sessions: dict[str, str] = {}
        self.store.client.meta.events.register("before-call.s3", self._count)
        named = {DATABASE: database or postgresql.address_for_new_server()}
        self.settings: ServerSettings = ServerSettings(named.get, public_url=PUBLIC_URL)
        self.app: Flask = app.create(data, self.stores, self.settings)
        self.base_uri = self.storage.base_uri
        self._client = self.app.test_client()
        if beside is not None:
            return
        with self.app.app_context():
            management.add_base_uri(self.base_uri, self.stores)
        self.add_user("grumpy")
        self.grant("grumpy", search=True, register=True)

    def add_user(self, username: str, *, is_admin: bool = False) -> None:
        with self.app.app_context():
            dservercore.utils.register_users([{"username": username, "is_admin": is_admin}])

    def add_base_uri(self, base_uri: str) -> None:
        with self.app.app_context():
            management.add_base_uri(base_uri, self.stores)

    def grant(
        self, username: str, *, search: bool, register: bool, base_uri: str | None = None
    ) -> None:
        with self.app.app_context():
            management.grant(username, base_uri or self.base_uri, search=search, register=register)

    def token(self, username: str) -> str:
        """Return a token for a user, made once: to sign one takes 70 ms."""
        if username not in self._tokens:
            with self.app.app_context():
                self._tokens[username] = tokens.new_token(username, TOKEN_LIFE)
        return self._tokens[username]

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        username: str | None = "grumpy",
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Ask as that user, or without a token."""
        sent = dict(headers or {})
        if username is not None:
            sent["Authorization"] = f"Bearer {self.token(username)}"
        return self._client.open(path, method=method, json=body, headers=sent)

    def session(self, username: str) -> str:
        """Return the cookie of a browser in which that user has logged in."""
        if username not in self._sessions:
            with self.app.app_context():
                secret = sessions.begin(username, TOKEN_LIFE)
                dservercore.sql_db.session.commit()
                self._sessions[username] = f"{cookie_name()}={secret}"
        return self._sessions[username]

    def browse(
        self,
        path: str,
        form: Mapping[str, str] | None = None,
        *,
        username: str | None = "grumpy",
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Ask for a page, or send a form, as that user's browser, or one of nobody's."""
        cookie = {} if username is None else {"Cookie": self.session(username)}
        return self.app.test_client(use_cookies=False).open(
            path,
            method="GET" if form is None else "POST",
            data=form,
            headers={"Accept": "text/html,*/*;q=0.8", **cookie, **(headers or {})},
        )

    def post(self, path: str, body: Any) -> Any:
        return self.request("POST", path, body)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        return self.request("GET", path, headers=headers)

    def upload(self, contents: Mapping[str, bytes], *, readme: bytes = b"", **others: Any) -> str:
        """Upload and complete a dataset; return its URI."""
        body = upload_body(contents, **others)
        begun = self.post(f"/signed-urls/upload/{encoded(self.base_uri)}", body).json
        put_all(begun, contents, readme)
        done = self.post("/signed-urls/upload-complete", {"uri": begun["uri"]})
        assert done.status_code == 200, done.text
        uri: str = begun["uri"]
        return uri

    def store_away(self) -> None:
        """Let the app find nobody where its store was."""
        away = dataclasses.replace(self.storage, endpoint="http://127.0.0.1:9")
        self.stores.away = ObjectStore(away, attempts=1)

    def store_back(self) -> None:
        self.stores.away = None

    def close(self) -> None:
        self.store.client.close()
        app.close(self.app)

    def _count(self, model: Any, **_: Any) -> None:
        self.requests[model.name] += 1


def put_all(begun: Any, contents: Mapping[str, bytes], readme: bytes | None = None) -> None:
    """Put these items, and the README if there is one, where an upload's answer says."""
    with urllib3.PoolManager(maxsize=8) as pool, ThreadPoolExecutor(8) as executor:

        def put(item: Any) -> int:
            answer = pool.request(
                "PUT", item["url"], body=contents[item["relpath"]], headers=item["headers"]
            )
            return answer.status

        assert set(executor.map(put, begun["upload_urls"]["items"].values())) <= {200}
        if readme is not None:
            assert pool.request("PUT", begun["upload_urls"]["readme"], body=readme).status == 200
