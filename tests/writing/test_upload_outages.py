"""Uploads through outages: store or server stopped, restarted or gone; clocks, TLS, proxies."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import ProtocolError, Unreachable
from dserverfs.base.progress import Progress
from dserverfs.remote.objects import Storage
from dserverfs.remote.puts import FilePart, OnProgress
from dserverfs.remote.trust import Trust
from dserverfs.writing.upload.uploader import Uploader
from dserverfs.writing.upload.url_source import Announcement
from tests.support.dtool_datasets import content_of
from tests.support.faulty_put_front import Detour, Handler, put_front
from tests.support.local_uploads import SMALL, Site, local_dataset, stored
from tests.support.mounts import client_of
from tests.support.patience import LATE_S
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, running_server
from tests.support.web_front import make_certificates

pytest_plugins = ["tests.support.upload_fixtures"]

LARGE = {"large.bin": content_of("large.bin", 9 * 1024 * 1024 + 17)}


class Reviving(Storage):
    """A storage that has a stopped process go on when the first PUT fails."""

    def __init__(self, pid: int) -> None:
        super().__init__(stall_timeout_s=0.5)
        self._pid = pid
        self.failures: list[Exception] = []

    def write(self, *args: Any) -> Mapping[str, str]:
        try:
            return super().write(*args)
        except Unreachable as error:
            self.failures.append(error)
            os.kill(self._pid, signal.SIGCONT)
            raise


@pytest.mark.parametrize("contents", [SMALL, LARGE], ids=["small", "large"])
def test_store_that_stops_and_goes_on(
    site: Site, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    dataset = local_dataset(tmp_path / "items", contents)
    weed = weed_of(site.server)
    storage = Reviving(weed)
    stopped: list[int] = []

    def stop_store(progress: Progress) -> None:
        if not stopped:
            stopped.append(weed)
            os.kill(weed, signal.SIGSTOP)

    try:
        Uploader(site.client.resolver, storage).upload(
            dataset, site.base_uri, on_progress=stop_store
        )
    finally:
        os.kill(weed, signal.SIGCONT)
        storage.close()

    assert storage.failures
    assert site.stored(dataset) == contents


def test_server_and_store_that_are_restarted_half_way(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = tmp_path / "server"
    dataset = local_dataset(tmp_path / "items", SMALL)
    half_way, restarted = threading.Event(), threading.Event()

    def wait_for_restart(progress: Progress) -> None:
        if progress.items_done == 5 and not half_way.is_set():
            half_way.set()
            assert restarted.wait(60)

    with ExitStack() as stack:
        # A server dies with the thread that started it.
        first = stack.enter_context(running_server(data, "--port", str(port)))
        client = stack.enter_context(client_of(first.base_uri, first.token, tmp_path / "cache"))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        upload = pool.submit(
            client.uploader.upload, dataset, first.backend_uri, on_progress=wait_for_restart
        )
        assert half_way.wait(60)
        first.process.terminate()
        first.process.wait(LATE_S)
        stack.enter_context(running_server(data, "--port", str(port)))
        restarted.set()

        upload.result(120)

        assert stored(client, dataset, first.backend_uri) == SMALL


def test_server_that_goes_away_is_unreachable_and_nothing_is_lost(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)
    transport = site.client._transport
    url = transport.base_url
    monkeypatch.setattr("dserverfs.base.retry.FIRST_WAIT_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"

    with pytest.raises(Unreachable):
        site.uploader.upload(
            dataset, site.base_uri, on_progress=lambda _: setattr(transport, "base_url", nowhere)
        )
    assert site.client._transport.base_url != url
    transport.base_url = url
    site.front.puts.clear()
    site.uploader.upload(dataset, site.base_uri)

    assert len(site.front.puts) == 1  # the README
    assert site.stored(dataset) == SMALL


def test_store_that_is_gone_is_unreachable_in_bounded_time(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)
    with socket.create_server(("127.0.0.1", 0)) as free:
        site.front.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    with pytest.raises(Unreachable, match="cannot be reached"):
        site.uploader.upload(dataset, site.base_uri)

    assert not site.is_registered(dataset)


def test_urls_are_announced_again_before_they_expire(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"a"})
    now_s = [0.0]
    announcement = Announcement(
        site.client.resolver.uploads, dataset, site.base_uri, clock_s=lambda: now_s[0]
    )

    first = announcement.urls()
    assert announcement.urls() is first
    now_s[0] = first.good_until_s + 1
    second = announcement.urls()

    assert second is not first
    assert announcement.renewed(first) is second
    assert announcement.renewed(second) is not second


def test_items_go_over_tls(server: ServerHandle, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    contents = {**SMALL, **LARGE}
    dataset = local_dataset(tmp_path / "items", contents)
    with (
        put_front(certificates) as front,
        client_of(server.base_uri, server.token, tmp_path / "cache") as client,
    ):
        storage = Detour(front, Trust(ca_file=certificates.authority))
        Uploader(client.resolver, storage).upload(dataset, server.backend_uri)
        storage.close()

        assert len(front.puts) == len(contents) + 2  # README, block hashes
        assert stored(client, dataset, server.backend_uri) == contents


def test_put_goes_by_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(handler: Handler) -> None:
        handler.take()
        handler.answer(200, b"")

    path = tmp_path / "content"
    path.write_bytes(b"content")
    ignore: OnProgress = lambda count: None  # noqa: E731
    storage = Storage()
    with put_front() as front, path.open("rb") as file:
        front.faults = [take]
        monkeypatch.setenv("http_proxy", front.url.replace("http://", "http://user:pw@"))
        content = FilePart(file.fileno(), 3, 4, "content")

        with closing(storage):
            storage.write("http://store.invalid/b/k?s=1", {"X-A": "b"}, content, ignore)

        (put,) = front.puts
    assert put.path == "http://store.invalid/b/k?s=1"
    assert put.content == b"tent"
    assert put.headers["Host"] == "store.invalid"
    assert put.headers["proxy-authorization"].startswith("Basic ")


def test_header_with_a_line_break_is_not_sent(tmp_path: Path) -> None:
    storage = Storage()
    headers = {"x-a": "b\r\nx-b: c"}
    with (
        put_front() as front,
        closing(storage),
        pytest.raises(ProtocolError, match="cannot be sent"),
    ):
        storage.write(f"{front.url}/b/k", headers, b"", lambda count: None)
    assert front.puts == []
