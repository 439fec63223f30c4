"""A database that is away, read-only or none of ours: one line, and all goes on afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dservercore.extensions import sql_db
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dserverfs.base.errors import NotConnected, UsageError
from dserverfs.server.database import connections
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.settings import DATABASE, ServerSettings
from tests.support import postgresql
from tests.support.child_processes import spawn
from tests.support.postgresql import PASSWORD, Cluster
from tests.support.server_app import AppClient
from tests.support.servers import (
    SOURCES,
    ServerHandle,
    encoded,
    serve_command,
    serve_environment,
)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return postgresql.shared.get()


@pytest.fixture
def client(server: ServerHandle, tmp_path: Path, cluster: Cluster) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path, database=cluster.new_database())
    yield client
    client.close()


def address_of(client: AppClient) -> str:
    address = client.settings.database()
    assert address is not None
    return address


def refused(client: AppClient) -> tuple[int, str, str]:
    """Return how a request is answered that needs the database."""
    answer = client.get("/me")
    return answer.status_code, answer.headers.get("Retry-After", ""), answer.json["message"]


def test_requests_go_on_after_connections_were_ended(client: AppClient, cluster: Cluster) -> None:
    assert client.get("/me").status_code == 200

    cluster.end_connections(address_of(client))

    assert client.get("/me").status_code == 200


@pytest.mark.expects_log("the database does not answer; requests are answered with 503")
def test_database_that_is_away_is_503_until_it_is_back(
    server: ServerHandle, tmp_path: Path, test_root: Path
) -> None:
    with postgresql.running(test_root) as cluster:
        client = AppClient(server, tmp_path, database=cluster.new_database())
        assert client.get("/me").status_code == 200
        assert client.browse("/").status_code == 200
        cluster.stop()

        assert [refused(client) for _ in range(2)] == [
            (503, "5", "the database does not answer")
        ] * 2
        assert client.browse("/").status_code == 503
        with pytest.raises(NotConnected, match=r"^database postgresql://dserverfs@"):
            connections.check(connections.of_text(address_of(client), "x"))

        cluster.start()
        assert client.get("/me").status_code == 200
        client.close()


def test_server_that_starts_before_its_database_waits_for_it(
    tmp_path: Path, test_root: Path
) -> None:
    with postgresql.running(test_root) as cluster:
        command = serve_command(
            tmp_path / "data", "--port", "0", "--database", cluster.new_database()
        )
        cluster.stop()
        with spawn(
            command,
            env=serve_environment(),
            cwd=SOURCES,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as served:
            assert served.stdout is not None
            assert served.stderr is not None
            assert b"waits for it" in served.stderr.readline()

            cluster.start()

            assert served.stdout.readline().startswith(b"dserver URL: ")


@pytest.mark.expects_log("the database is read-only")
def test_database_that_is_read_only_is_read(client: AppClient, cluster: Cluster) -> None:
    uri = client.upload({"a": b"a"})
    name = postgresql.name_of(address_of(client))
    cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    cluster.end_connections(address_of(client))

    changed = client.request("PUT", f"/tags/{encoded(uri)}", {"tags": ["x"]})

    assert client.get(f"/tags/{encoded(uri)}").json == {"tags": []}
    assert (changed.status_code, changed.json["message"]) == (503, "the database is read-only")
    cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    cluster.end_connections(address_of(client))
    assert client.request("PUT", f"/tags/{encoded(uri)}", {"tags": ["x"]}).status_code == 200


@pytest.mark.expects_log("all connections to it are in use")
def test_request_without_a_free_connection_is_503(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/me").status_code == 200  # with a token that is made once
    with client.app.app_context(), contextlib.ExitStack() as stack:
        pool = sql_db.engine.pool
        monkeypatch.setattr(pool, "_timeout", 0.01)
        with contextlib.suppress(PoolTimeoutError):
            while True:
                stack.enter_context(sql_db.engine.connect())
        assert refused(client) == (
            503,
            "5",
            "the database is busy: all connections to it are in use",
        )

    assert client.get("/me").status_code == 200


def test_no_secret_of_the_database_is_told(
    client: AppClient, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = (tmp_path / "database").read_text()
    client.add_user("boss", is_admin=True)

    told = client.request("GET", "/config/info", username="boss").text

    assert "psycopg" not in told
    assert str(cluster.directory) not in told
    assert DataDirectory(tmp_path).address(ServerSettings(lambda key: None)).without_password() == (
        kept.strip()
    )


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("mysql://x/y", UsageError, "DSERVER_DATABASE: must be postgresql://USER@HOST/NAME"),
        ("postgresql://x@/", UsageError, "names no database"),
        ("postgresql://x@y/z?nonsense=1", UsageError, "is no address of a PostgreSQL"),
        ("postgresql://dserverfs:wrong@127.0.0.1:{port}/postgres", UsageError, "password auth"),
        ("postgresql://dserverfs@/nowhere?host={directory}&port={port}", UsageError, "not exist"),
        ("postgresql://dserverfs:wrong@127.0.0.1:9/x", NotConnected, "refused"),
        ("postgresql://dserverfs@/{latin}?host={directory}&port={port}", UsageError, "LATIN1"),
    ],
)
def test_address_that_cannot_be_used_is_one_line_without_its_password(
    tmp_path: Path, cluster: Cluster, address: str, error: type[Exception], message: str
) -> None:
    latin = ""
    if "{latin}" in address:
        options = {"encoding": "'LATIN1'", "locale": "'C'", "template": "template0"}
        latin = postgresql.name_of(cluster.new_database(**options))
    full = address.format(port=cluster.port, directory=cluster.directory, latin=latin)
    settings = ServerSettings({DATABASE: full}.get)

    with pytest.raises(error, match=message) as raised:
        connections.check(DataDirectory(tmp_path).address(settings))

    assert "wrong" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_older_postgresql_than_is_known_to_work_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = connections.of_text(cluster.new_database(), "x")
    monkeypatch.setattr(connections, "LEAST_VERSION", 99)

    with pytest.raises(UsageError, match=r"is PostgreSQL 1\d; dserverfs needs 99 or newer"):
        connections.check(address)


def test_commands_find_the_database_of_the_last_run_and_the_password_in_pgpass(
    tmp_path: Path, cluster: Cluster
) -> None:
    name = postgresql.name_of(cluster.new_database())
    cluster.execute(f"ALTER ROLE dserverfs PASSWORD '{PASSWORD}'")
    pgpass = tmp_path / "pgpass"
    pgpass.write_text(f"127.0.0.1:{cluster.port}:*:dserverfs:{PASSWORD}\n")
    pgpass.chmod(0o600)
    address = f"postgresql://dserverfs@127.0.0.1:{cluster.port}/{name}"
    environment = {**os.environ, "PGPASSFILE": str(pgpass)}

    def manage(*arguments: str, **others: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "dserverfs",
                "serve",
                "--data",
                str(tmp_path / "data"),
                *arguments,
            ],
            env={**environment, **others},
            cwd=SOURCES,
            capture_output=True,
            text=True,
            check=False,
        )

    added = manage("user", "add", "alice", DSERVER_DATABASE=address)
    listed = manage("user", "list")
    away = manage("user", "list", PGPASSFILE="/nonexistent")

    assert (added.returncode, added.stderr) == (0, "")
    assert listed.stdout == "alice - -\n"
    assert not (tmp_path / "data/dserver.sqlite").exists()
    assert PASSWORD not in (tmp_path / "data/database").read_text()
    assert away.returncode == 1
    assert away.stderr.count("\n") == 1


def test_password_in_an_option_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dserverfs", "serve", "--data", str(tmp_path / "data")),
            *("--port", "0", "--database", "postgresql://x:hidden@127.0.0.1/y"),
        ],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "hidden" not in done.stderr
