"""How a server is addressed, and what is said of where it sends one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource


@pytest.fixture
def routes(request: pytest.FixtureRequest) -> Iterator[Routes]:
    transport = ServerTransport(request.param, TokenSource("token", None))
    yield Routes(transport)
    transport.close()


@pytest.mark.expects_log("signs URLs of http://store.example:9000", "signs URLs of http://other")
@pytest.mark.parametrize("routes", ["https://dserver.example"], indirect=True)
def test_store_without_encryption_behind_a_server_with_it_is_told_once(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    for key in range(3):
        routes.note_signed(f"http://u:secret@store.example:9000/b/{key}?signature=secret#secret")
        routes.note_signed("http://other.example/b?signature=secret")
        routes.note_signed("https://store.example/b?signature=secret")
        routes.note_signed("http://127.0.0.1:9000/b?signature=secret")
        routes.note_signed("")

    assert caplog.text.count("unencrypted") == 2
    assert "secret" not in caplog.text


@pytest.mark.parametrize("routes", ["http://dserver.example"], indirect=True)
def test_store_is_no_worse_than_its_server(
    routes: Routes, caplog: pytest.LogCaptureFixture
) -> None:
    routes.note_signed("http://store.example/b?signature=secret")

    assert "unencrypted" not in caplog.text
