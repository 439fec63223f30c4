"""The store's door to other machines: what it needs, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from dserverfs.base.errors import UsageError
from dserverfs.server.store.gateway import Door, Gateway
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.signals import Signals
from tests.support.authority import Authority
from tests.support.patience import LATE_S
from tests.support.server_store import children_of
from tests.support.servers import ServerHandle, encoded, running_server, upload

CONTENTS = {"a.txt": b"alpha"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def with_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerHandle]:
    authority = Authority(tmp_path)
    certificate, key = authority.certify("server", "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with running_server(
        tmp_path / "data",
        *("--store-host", "127.0.0.1", "--store-port", str(free_port())),
        *("--tls-cert", str(certificate), "--tls-key", str(key)),
    ) as server:
        yield server


def test_buckets_that_are_new_are_reached_and_serve_ends_when_the_door_does(
    with_door: ServerHandle,
) -> None:
    for _ in range(2):
        user = with_door.username
        base_uri = with_door.add_base_uri(search=[user], register=[user])
        uri = upload(with_door, CONTENTS, base_uri=base_uri)  # by URLs of the door
        answer = with_door.get(f"/signed-urls/dataset/{encoded(uri)}").json()
        (url,) = answer["item_urls"].values()
        assert url.startswith("https://127.0.0.1:")
        assert requests.get(url, timeout=30).content == CONTENTS["a.txt"]
        assert requests.put(url, data=b"x", timeout=30).status_code == 403
        assert requests.get(url.partition("?")[0], timeout=30).status_code == 403

    _, door = (
        pid for pid in children_of(with_door) if "weed" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    os.kill(door, signal.SIGKILL)

    assert with_door.process.wait(LATE_S) == 1
    error = with_door.data.with_name("data.log").read_text().splitlines()[-1]
    assert error.startswith("dserverfs: weed ended by signal 9")
    assert str(with_door.data / "store" / "gateway.log") in error
    assert not list((with_door.data / "store").glob("*.sock"))


def test_store_has_the_port_that_a_proxy_here_is_told(tmp_path: Path) -> None:
    port = free_port()
    options = ("--store-port", str(port), "--store-url", f"http://127.0.0.1:{port}")
    with running_server(tmp_path / "data", *options) as server:
        uri = upload(server, CONTENTS)
        url = server.get(f"/signed-urls/dataset/{encoded(uri)}").json()["readme_url"]
        assert url.startswith(f"http://127.0.0.1:{port}/datasets/")
        assert requests.get(url, timeout=30).status_code == 200
        ports = json.loads((tmp_path / "data/store/ports.json").read_text())
        assert ports["s3.port"] == port


@pytest.mark.parametrize("kind", ["store", "door"])
def test_port_that_is_taken_is_one_line_that_names_the_option(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Signals() as signals:
        port = taken.getsockname()[1]
        store = SeaweedFS(tmp_path, bucket="b", s3_port=port)
        gateway = Gateway(tmp_path, Door("127.0.0.1", port, None))
        running = store.running(signals) if kind == "store" else gateway.running(store, signals)
        with pytest.raises(UsageError, match=f"127.0.0.1 port {port}: .*another --store-port"):
            running.__enter__()
