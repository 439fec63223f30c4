"""What the manager of services is told, at each kind of socket, and when nobody listens."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM

import pytest

from dserverfs.base import service_manager
from tests.support.service_manager import manager


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_manager_is_told(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager(str(tmp_path / "s") if kind == "path" else f"@dserverfs-test-{os.getpid()}") as m:
        monkeypatch.setenv("NOTIFY_SOCKET", m.name)

        service_manager.ready("mounts")
        service_manager.stopping("ends")

        assert m.told() == {"READY": "1", "STATUS": "mounts"}
        assert m.told() == {"STOPPING": "1", "STATUS": "ends"}


@pytest.mark.parametrize("name", [None, "", "vsock:2:1", "@", "/no/such/socket", "/" + "x" * 200])
def test_without_a_manager_nothing_fails(
    name: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if name is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", name)

    service_manager.ready("up")

    is_a_socket = name is not None and name.startswith(("/", "@"))
    assert ("the manager of services is not told" in caplog.text) is is_a_socket


def test_manager_that_does_not_read_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_manager, "SEND_TIMEOUT_S", 0.01)
    with manager(str(tmp_path / "s")) as full, socket.socket(AF_UNIX, SOCK_DGRAM) as other:
        monkeypatch.setenv("NOTIFY_SOCKET", full.name)
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"x", full.name)

        service_manager.ready("up")
