"""`dserverfs serve` as a process: what it prints, refuses, survives and leaves behind."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import requests

from dserverfs.cli.serve_management import data_directory
from dserverfs.server.store.seaweedfs import grpc_sockets
from tests.support.patience import LATE_S
from tests.support.server_store import weed_of
from tests.support.servers import (
    SOURCES,
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
from tests.support.service_manager import manager

CONTENTS = {"a.txt": b"alpha", "b/c.txt": b"gamma"}


def run_serve(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `serve` to its end, which is expected soon."""
    return subprocess.run(
        serve_command(data, *options),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=SOURCES,
        env=serve_environment(),
        check=False,
    )


def wait_gone(pid: int) -> None:
    """Wait until a process that is no child of ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([descriptor], [], [], 10)
        assert ended, f"{pid} still runs"
    finally:
        os.close(descriptor)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_serve_prints_three_lines_and_keeps_its_files_private(data: Path) -> None:
    with running_server(data) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.base_uri == f"dserver://{server.url.removeprefix('http://')}/s3/datasets"
        assert server.token_file == data / "token"
        for path in [data, *data.rglob("*")]:
            mode = path.stat().st_mode
            if path.parent != data / "store" / "data":  # weed's own, in a private directory
                assert stat.S_IMODE(mode) & 0o077 == 0, path
        for name in ("password", "secret_key", "jwt_private.pem", "token", "store/s3.json"):
            assert stat.S_IMODE((data / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_on_a_signal_and_tells_its_manager(
    data: Path, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with manager(str(tmp_path / "notify")) as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
        with running_server(data) as server:
            assert systemd.told() == {"READY": "1", "STATUS": f"serves {server.url}"}
            weed = weed_of(server)
            server.process.send_signal(number)
            status = server.process.wait(LATE_S)

            assert status == 0
            assert systemd.told()["STOPPING"] == "1"
            assert not Path(f"/proc/{weed}").exists()


def test_serve_stops_on_a_signal_while_it_starts(data: Path) -> None:
    with subprocess.Popen(
        serve_command(data, "--port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=SOURCES,
        env=serve_environment(),
        text=True,
    ) as process:
        while not (data / "store" / "weed.log").exists():
            os.sched_yield()
            assert process.poll() is None
        process.terminate()
        out, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert out == ""


def test_data_survive_a_restart_and_urls_stay_good(data: Path) -> None:
    with running_server(data) as server:
        uri = upload(server, CONTENTS, readme=b"kept: yes", tags=["kept"])
        pending = begin(server, upload_body(CONTENTS))
        old_token = server.token
        old_url = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["readme_url"]

    with running_server(data) as server:
        assert server.get(f"/readmes/{encoded(uri)}").json() == {"readme": "kept: yes"}
        assert server.get("/me", token=old_token).status_code == 200
        assert requests.get(old_url, timeout=30).text == "kept: yes"
        put_items(pending, CONTENTS)
        assert complete(server, pending["uri"]).status_code == 200


def test_data_survive_kill_9_and_weed_does_not(data: Path) -> None:
    with running_server(data) as server:
        uri = upload(server, CONTENTS)
        weed = weed_of(server)
        sockets = grpc_sockets(json.loads((data / "store" / "ports.json").read_text()))
        server.process.kill()
        server.process.wait()

        wait_gone(weed)
    assert all(path.is_socket() for path in sockets)  # who is killed cleans up nothing

    with running_server(data) as server:
        urls = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["item_urls"]
        assert sorted(requests.get(url, timeout=30).content for url in urls.values()) == [
            b"alpha",
            b"gamma",
        ]

    assert not any(os.path.lexists(path) for path in sockets)
    assert not list((data / "store").glob("*.sock"))


def test_a_start_that_was_killed_can_be_started(data: Path) -> None:
    for file in ("version", "store/s3.json", "store/weed.log", "jwt_private.pem", "password"):
        with subprocess.Popen(
            serve_command(data, "--port", "0"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=SOURCES,
            env=serve_environment(),
        ) as process:
            while not (data / file).exists():
                os.sched_yield()
                assert process.poll() is None
            process.kill()

    with running_server(data) as server:
        password = (data / "password").read_text().strip()
        login = {"username": server.username, "password": password}
        assert server.post("/token", login, token="").status_code == 200
        assert server.get("/me").json()["search_permissions_on_base_uris"] == ["s3://datasets"]


def test_serve_reports_the_end_of_weed_and_fails(data: Path) -> None:
    with running_server(data) as server:
        os.kill(weed_of(server), signal.SIGKILL)

        assert server.process.wait(LATE_S) == 1

    error = data.with_name("data.log").read_text().splitlines()[-1]
    assert error.startswith("dserverfs: weed ended by signal 9")
    assert str(data / "store" / "weed.log") in error


def test_serve_refuses_a_port_in_use(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])

        ended = run_serve(data, "--port", port)

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"dserverfs: cannot listen on 127.0.0.1 port {port}: ")
    assert ended.stderr.count("\n") == 1


def test_serve_refuses_a_directory_in_use(data: Path) -> None:
    with running_server(data):
        ended = run_serve(data, "--port", "0")

    assert ended.returncode == 1
    assert "is in use by another dserverfs serve" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("version", ["dserverfs server 2\n", "", "\udcff"])
def test_serve_refuses_data_of_another_version(data: Path, version: str) -> None:
    data.mkdir()
    (data / "version").write_text(version, errors="surrogateescape")

    ended = run_serve(data, "--port", "0")

    assert ended.returncode == 1
    assert "'dserverfs server 1'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_serve_refuses_a_directory_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")

    ended = run_serve(tmp_path, "--port", "0")

    assert ended.returncode == 1
    assert "thesis.tex" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


@pytest.mark.parametrize("place", ["/proc/dserverfs", "/dev/null/x", "/etc/passwd"])
def test_serve_refuses_a_directory_it_cannot_make(place: str) -> None:
    ended = run_serve(Path(place), "--port", "0")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"dserverfs: --data {place}: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [("--port", "65536"), ("--bucket", "No"), ("--bucket", "a/b"), ("--host", "256.0.0.1")],
)
def test_serve_refuses_options(data: Path, options: tuple[str, str]) -> None:
    ended = run_serve(data, *options)

    assert ended.returncode == 1
    assert ended.stderr.startswith("dserverfs: ")
    assert ended.stderr.count("\n") == 1
    assert not data.exists()


def test_serve_takes_other_ports_when_its_last_ones_are_taken(data: Path) -> None:
    with running_server(data) as server:
        uri = upload(server, CONTENTS, readme=b"moved")
    ports = json.loads((data / "store" / "ports.json").read_text())

    with socket.create_server(("127.0.0.1", ports["s3.port"])), running_server(data) as server:
        url = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["readme_url"]
        assert requests.get(url, timeout=30).text == "moved"


def test_serve_writes_nothing_beside_its_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))

    with running_server(data) as server:
        upload(server, CONTENTS)
    with running_server(data) as server:
        server.get("/me").raise_for_status()

    assert [path.name for path in scratch.iterdir()] == []


def test_another_bucket_is_another_base_uri_of_the_same_server(data: Path) -> None:
    with running_server(data) as server:
        uri = upload(server, CONTENTS)

    with running_server(data, "--bucket", "second") as server:
        assert server.backend_uri == "s3://second"
        upload(server, CONTENTS)
        permitted = server.get("/me").json()["register_permissions_on_base_uris"]
        assert sorted(permitted) == ["s3://datasets", "s3://second"]
        assert server.get(f"/signed-urls/dataset/{encoded(uri)}").status_code == 200


def test_nothing_secret_is_logged(data: Path) -> None:
    access_log = data.with_name("access.log")
    with running_server(data, "--access-log", str(access_log)) as server:
        token = server.token
        upload(server, CONTENTS)

    log = data.with_name("data.log").read_text()
    for text in (log, access_log.read_text()):
        assert token not in text
        assert "X-Amz-Signature" not in text
    requested = [json.loads(line)["route"] for line in access_log.read_text().splitlines()]
    assert requested == ["/signed-urls/upload/<path:base_uri>", "/signed-urls/upload-complete"]
    (line,) = log.splitlines()
    assert line.endswith(" INFO dserverfs.server.serve: stopped")


def test_default_data_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert data_directory(None) == Path("/somewhere/dserverfs/server")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/doc")
    assert data_directory(None) == Path("/home/doc/.local/share/dserverfs/server")
