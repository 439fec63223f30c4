"""The server under gunicorn: several workers, of which none knows more than the others."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests

from dserverfs.server.wsgi import EXIT_STATUS
from tests.support import steps
from tests.support.gunicorn import WITH_STEPS, new_bucket, running_gunicorn, settings, started
from tests.support.mount_daemons import wait_for_end
from tests.support.patience import LATE_S
from tests.support.server_store import children_of, storage_of
from tests.support.servers import (
    SOURCES,
    ServerHandle,
    begin,
    complete,
    encoded,
    put_items,
    running_server,
    serve_command,
    serve_environment,
    upload,
    upload_body,
)
from tests.support.tcp_relay import relay

CONTENTS = {"a.txt": b"alpha", "b/c.txt": b"gamma"}
DESCRIBED: dict[str, Any] = {"tags": ["t"], "annotations": {"n": 1}}
README = b"kept: yes\n"
STILL_S = 3  # longer than a server needs that waits for nothing


@pytest.fixture
def environment(server: ServerHandle, tmp_path: Path) -> dict[str, str]:
    """The settings of a server with a directory of its own, and a bucket of a running store."""
    storage = storage_of(server)
    here = tmp_path / "steps"
    here.mkdir()
    for name in ("reached", "go"):
        os.mkfifo(here / name)
    return settings(tmp_path / "data", storage, new_bucket(storage), **{steps.HERE: str(here)})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "gunicorn.log"


def figures(server: ServerHandle) -> dict[str, float]:
    token = (server.data / "metrics_token").read_text().strip()
    lines = server.get("/metrics", token=token).text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
    }


def test_requests_at_once_take_turns_in_whichever_workers(
    environment: dict[str, str], log: Path, tmp_path: Path
) -> None:
    """What a process has in its memory only, another would do once more, or undo."""
    access_log = tmp_path / "access.log"
    environment["DSERVER_ACCESS_LOG"] = str(access_log)
    environment["DSERVER_TRUSTED_PROXIES"] = "10.0.0.0/8, 127.0.0.1"
    environment["DSERVER_PUBLIC_URL"] = "https://data.example.org/"
    with running_gunicorn(environment, log=log) as server, ThreadPoolExecutor(16) as pool:
        body = upload_body(CONTENTS, **DESCRIBED)
        (begun, *_) = pool.map(lambda _: begin(server, body), range(8))
        put_items(begun, CONTENTS, README)
        uri = begun["uri"]

        completed = [
            done.status_code for done in pool.map(lambda _: complete(server, uri), range(8))
        ]

        assert sorted(completed) == [200] + [400] * 7
        require_whole(server, uri)
        names = [f"n{number}" for number in range(16)]
        path = f"/annotations/{encoded(uri)}"
        list(pool.map(lambda name: server.request("PUT", f"{path}/{name}", {"value": 1}), names))
        assert server.get(path).json()["annotations"].keys() == {"n", *names}
        stored = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["annotation_urls"]
        assert stored.keys() == {"n", *names}

        wrong = {"username": "my-password", "password": "s3cret"}
        guessed = [
            answer.status_code
            for answer in pool.map(lambda _: server.post("/token", wrong, token=""), range(24))
        ]
        assert guessed.count(401) <= 10
        assert guessed.count(401) + guessed.count(429) == 24
        assert server.post("/token", wrong, token="").status_code == 429

        figure = figures(server)
        number = 'dserverfs_requests_total{{method="POST",route="{}",status="{}"}}'
        assert figure[number.format("/signed-urls/upload-complete", 200)] == 1
        assert figure[number.format("/signed-urls/upload-complete", 400)] == 7
        assert figure[number.format("/token", 429)] == guessed.count(429) + 1
        assert figure['dserverfs_signed_urls_total{of="upload"}'] == 8 * (len(CONTENTS) + 1)
        assert figure["dserverfs_open_uploads"] == 0
        assert server.get("/metrics").status_code == 401  # a user's token is another one
        forwarded = {"X-Forwarded-For": "203.0.113.9, 192.0.2.7, 10.1.2.3"}
        said = requests.get(f"{server.url}/config/versions", headers=forwarded, timeout=30)
        assert said.status_code == 200
        secrets = [server.token, "my-password", "s3cret", "X-Amz", uri]

    text = access_log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum(line["route"] == "/annotations/<path:uri>/<name>" for line in lines) == 16
    assert [line["address"] for line in lines if line["route"] == "/config/versions"] == [
        "192.0.2.7"
    ]
    assert {line["user"] for line in lines if line["method"] == "PUT"} == {server.username}
    assert {line["user"] for line in lines if line["route"] == "/token"} == {None}
    assert [secret for secret in secrets if secret in text] == []


def require_whole(server: ServerHandle, uri: str) -> None:
    """Require that a dataset is registered once, and that all of it can be read."""
    found = server.get(f"/uuids/{uri.rpartition('/')[2]}").json()
    assert [entry["uri"] for entry in found] == [uri]
    manifest = server.get(f"/manifests/{encoded(uri)}").json()
    assert {item["relpath"] for item in manifest["items"].values()} == CONTENTS.keys()
    assert server.get(f"/readmes/{encoded(uri)}").json() == {"readme": README.decode()}
    urls = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()
    items = [requests.get(url, timeout=30).content for url in urls["item_urls"].values()]
    assert sorted(items) == sorted(CONTENTS.values())
    assert urls["tags"] == ["t"]
    assert list(urls["annotation_urls"]) == ["n"]
    assert server.get("/signed-urls/uploads").json() == {"uploads": []}


def completed_after_a_kill(server: ServerHandle, kill: Path, step: int) -> bool:
    """Upload a dataset with a kill at that step; return whether there is such a step."""
    begun = begin(server, upload_body(CONTENTS, **DESCRIBED))
    put_items(begun, CONTENTS, README)
    kill.write_text(str(step))
    try:
        first = complete(server, begun["uri"])
    except requests.ConnectionError:
        first = None
    if first is None:
        again = complete(server, begun["uri"])
        is_registered = again.status_code == 400 and "is registered already" in again.text
        assert again.status_code == 200 or is_registered, again.text
    else:
        assert first.status_code == 200, first.text
        kill.unlink()
    require_whole(server, begun["uri"])
    return first is None


def test_a_worker_that_is_killed_at_any_step_of_a_completion_costs_nothing(
    environment: dict[str, str], log: Path
) -> None:
    kill = Path(environment[steps.HERE]) / "kill"
    with running_gunicorn(environment, app=WITH_STEPS, log=log) as server:
        killed_at = list(
            itertools.takewhile(
                lambda step: completed_after_a_kill(server, kill, step), itertools.count(1)
            )
        )

    assert len(killed_at) > 15
    assert log.read_text().count("was sent SIGKILL") == len(killed_at)


def wait_logged(log: Path, text: str) -> None:
    while text not in log.read_text():
        os.sched_yield()


def require_registered(data: Path, uri: str) -> None:
    """Require that a dataset is the one that the database of a stopped server has."""
    kept = data / "database"  # where it is, if it is a PostgreSQL
    connection: Any = (
        psycopg.connect(kept.read_text())
        if kept.exists()
        else sqlite3.connect(data / "dserver.sqlite")
    )
    with contextlib.closing(connection) as database:
        for table in ("dataset", "dserverfs_description", "dserverfs_search"):
            assert database.execute(f"SELECT uri FROM {table}").fetchall() == [(uri,)]
        assert database.execute("SELECT uri FROM dserverfs_upload").fetchall() == []


def test_a_completion_that_is_under_way_ends_well_when_gunicorn_is_stopped(
    environment: dict[str, str], log: Path
) -> None:
    here = Path(environment[steps.HERE])
    with running_gunicorn(environment, app=WITH_STEPS, log=log) as server:
        begun = begin(server, upload_body(CONTENTS, **DESCRIBED))
        put_items(begun, CONTENTS, README)
        (here / "hold").write_text("5")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(complete, server, begun["uri"])
            (here / "reached").read_bytes()
            server.process.terminate()
            wait_logged(log, "Handling signal: term")
            (here / "go").write_bytes(b"x")

            assert answer.result(LATE_S).status_code == 200
        assert server.process.wait(LATE_S) == 0

    require_registered(server.data, begun["uri"])


def test_workers_end_with_the_gunicorn_above_them_whatever_they_do(
    environment: dict[str, str], log: Path
) -> None:
    """Else the next one finds the address in use until their requests have ended."""
    here = Path(environment[steps.HERE])
    with (
        running_gunicorn(environment, app=WITH_STEPS, log=log) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        begun = begin(server, upload_body(CONTENTS, **DESCRIBED))
        put_items(begun, CONTENTS, README)
        (here / "hold").write_text("5")
        answer = pool.submit(complete, server, begun["uri"])
        (here / "reached").read_bytes()
        workers = children_of(server)

        server.process.kill()

        assert len(workers) == 2
        for worker in workers:
            wait_for_end(worker)
        with pytest.raises(requests.ConnectionError):
            answer.result(30)


def wait_refused(server: ServerHandle) -> None:
    """Wait until a server takes no connection any more."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with contextlib.suppress(ConnectionError):
        while True:
            socket.create_connection((host, int(port)), timeout=LATE_S).close()
            os.sched_yield()


def test_a_completion_that_is_under_way_ends_well_when_serve_is_stopped(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(environment[steps.HERE])
    monkeypatch.setenv(steps.HERE, str(here))
    with running_server(tmp_path / "serve", module="tests.support.steps") as server:
        begun = begin(server, upload_body(CONTENTS, **DESCRIBED))
        put_items(begun, CONTENTS, README)
        (here / "hold").write_text("5")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(complete, server, begun["uri"])
            (here / "reached").read_bytes()
            server.process.terminate()
            wait_refused(server)
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(STILL_S)
            (here / "go").write_bytes(b"x")

            assert answer.result(LATE_S).status_code == 200
        assert server.process.wait(LATE_S) == 0

    require_registered(tmp_path / "serve", begun["uri"])


def test_servers_that_start_at_once_are_one_server(
    environment: dict[str, str], log: Path, tmp_path: Path
) -> None:
    """Each of the processes prepares the directory: it is loaded after the fork."""
    config = tmp_path / "gunicorn.py"
    config.write_text("from dserverfs.server.gunicorn_conf import *\npreload_app = False\n")
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(started(environment, "--config", str(config), log=log))
            for _ in range(2)
        ]
        for server in servers:
            requests.get(f"{server.url}/health", timeout=60).raise_for_status()

        password = (server.data / "password").read_text().strip()
        login = {"username": server.username, "password": password}
        for server in servers:
            for _ in range(4):  # to reach all workers
                token = server.post("/token", login, token="").json()["token"]
                for other in servers:
                    assert other.get("/me", token=token).json()["username"] == server.username
                    assert other.get("/users").json() == [
                        {"username": server.username, "is_admin": True}
                    ]
        refused = subprocess.run(
            serve_command(server.data, "--port", "0"),
            capture_output=True,
            text=True,
            timeout=60,
            cwd=SOURCES,
            env=serve_environment(),
        )
        assert refused.returncode == 1
        assert "is in use by another dserverfs serve, or by gunicorn" in refused.stderr
        assert refused.stderr.count("\n") == 1

    assert "Traceback" not in log.read_text()


def test_a_store_that_is_away_keeps_nothing_from_starting(
    environment: dict[str, str], log: Path
) -> None:
    bucket = environment["DSERVER_BUCKET"]
    endpoint = urlsplit(environment[f"DTOOL_S3_ENDPOINT_{bucket}"])
    with relay(str(endpoint.hostname), int(endpoint.port or 0)) as way:
        way.pause()
        environment[f"DTOOL_S3_ENDPOINT_{bucket}"] = f"http://127.0.0.1:{way.port}"
        with running_gunicorn(environment, log=log) as server:
            away = server.get("/health/ready", token="")
            assert (away.status_code, away.json()) == (
                503,
                {"status": "not ready", "failing": ["store"]},
            )
            token = (server.data / "metrics_token").read_text().strip()
            reason = server.get("/health/ready", token=token).json()["failing"]
            assert reason.keys() == {f"s3://{bucket}"}
            assert server.get("/health", token="").status_code == 200

            way.resume()
            while server.get("/health/ready", token="").status_code != 200:
                os.sched_yield()
            uri = upload(server, CONTENTS, readme=README, **DESCRIBED)
            require_whole(server, uri)

    assert f"s3://{bucket}: bucket {bucket}: the store does not answer" in log.read_text()


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no store": (
        {
            "DTOOL_S3_ENDPOINT_{}": "",
            "DTOOL_S3_ACCESS_KEY_ID_{}": "",
            "DTOOL_S3_SECRET_ACCESS_KEY_{}": "",
        },
        "`dserverfs serve` alone",
    ),
    "half a store": ({"DTOOL_S3_SECRET_ACCESS_KEY_{}": ""}, "must be set together"),
    "no such bucket": (
        {
            "DSERVER_BUCKET": "nowhere",
            "DTOOL_S3_ENDPOINT_nowhere": "{endpoint}",
            "DTOOL_S3_ACCESS_KEY_ID_nowhere": "{key}",
            "DTOOL_S3_SECRET_ACCESS_KEY_nowhere": "{secret}",
        },
        "bucket nowhere is not in the store",
    ),
    "no bucket": ({"DSERVER_BUCKET": "a/b"}, "bucket a/b: not 3 to 63 characters"),
    "no place for the log": (
        {"DSERVER_ACCESS_LOG": "/nowhere/log"},
        "access log /nowhere/log: cannot be written",
    ),
    "no URL": ({"DSERVER_PUBLIC_URL": "data.example.org"}, "DSERVER_PUBLIC_URL data.example.org: "),
    "no network": ({"DSERVER_TRUSTED_PROXIES": "10.0.0.1,x"}, "DSERVER_TRUSTED_PROXIES x: "),
    "no directory": ({"DSERVER_DATA": "/proc/x"}, "DSERVER_DATA = /proc/x: "),
    "another version": ({"DSERVER_DATA": "{newer}"}, "holds 'dserverfs server 2'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_cannot_be_are_one_line(
    environment: dict[str, str], tmp_path: Path, what: str
) -> None:
    changes, reason = REFUSED[what]
    bucket = environment["DSERVER_BUCKET"]
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "version").write_text("dserverfs server 2\n")
    known = {
        "newer": newer,
        "endpoint": environment[f"DTOOL_S3_ENDPOINT_{bucket}"],
        "key": environment[f"DTOOL_S3_ACCESS_KEY_ID_{bucket}"],
        "secret": environment[f"DTOOL_S3_SECRET_ACCESS_KEY_{bucket}"],
    }
    changed = {name.format(bucket): value.format(**known) for name, value in changes.items()}

    ended = subprocess.run(
        [sys.executable, "-c", "from dserverfs.server.wsgi import application"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=SOURCES,
        env={**environment, **changed},
    )

    assert ended.returncode == EXIT_STATUS
    assert ended.stderr.startswith("dserverfs: ")
    assert reason in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [path.name for path in newer.iterdir()] == ["version"]


@pytest.mark.parametrize("preload", [True, False])
def test_gunicorn_ends_with_one_line_of_ours_when_it_cannot_start(
    environment: dict[str, str], log: Path, tmp_path: Path, preload: bool
) -> None:
    config = tmp_path / "gunicorn.py"
    config.write_text(f"from dserverfs.server.gunicorn_conf import *\npreload_app = {preload}\n")
    environment["DSERVER_BUCKET"] = "nowhere"

    # One worker: gunicorn trips over a second one that ends while it ends because of the first.
    options = ("--config", str(config), "--workers", "1")
    with started(environment, *options, log=log) as server:
        assert server.process.wait(60) == EXIT_STATUS

    text = log.read_text()
    assert "dserverfs: bucket nowhere: DTOOL_S3_ENDPOINT_nowhere is not set" in text
    assert "Traceback" not in text
