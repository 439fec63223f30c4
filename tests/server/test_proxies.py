"""Who a request is from, through proxies that are trusted and past them."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import Client

from dserverfs.server.addresses import network_of
from dserverfs.server.proxies import ClientAddresses, ProxiesOnly, client_address
from dserverfs.server.routes.guesses import MAX_OF_PAIR
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle

PROXY, OTHER_PROXY = "10.0.0.1", "10.0.1.9"
TRUSTED = [network_of("", PROXY), network_of("", "10.0.1.0/24"), network_of("", "fd00::/64")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),  # anybody can say that
        (PROXY, "", PROXY),
        (PROXY, "192.0.2.1", "192.0.2.1"),
        (PROXY, "198.51.100.1, 192.0.2.1", "192.0.2.1"),  # what the client said before it
        (PROXY, f"192.0.2.1, {OTHER_PROXY}", "192.0.2.1"),
        (PROXY, f"{PROXY}, {OTHER_PROXY}", PROXY),
        (PROXY, "192.0.2.1:4711", "192.0.2.1"),
        (PROXY, "[2001:db8::1]:4711", "2001:db8::1"),
        (PROXY, "2001:db8::1", "2001:db8::1"),
        ("fd00::5", "192.0.2.1", "192.0.2.1"),
        ("::ffff:10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
        (PROXY, "192.0.2.1, unknown", PROXY),
        (PROXY, "unknown, 192.0.2.1", "192.0.2.1"),
        (PROXY, ",,", PROXY),
        ("", "192.0.2.1", ""),
        ("localhost", "192.0.2.1", "localhost"),
    ],
)
def test_client_is_the_last_that_no_trusted_proxy_is(
    peer: str, forwarded: str, client: str
) -> None:
    assert client_address(peer, forwarded, TRUSTED) == client


@given(said=st.text(st.sampled_from("0123456789abcdef.:[], ")), real=st.ip_addresses())
def test_what_a_client_says_of_itself_counts_for_nothing(said: str, real: Any) -> None:
    if any(real in network for network in TRUSTED):
        return
    expected = str(getattr(real, "ipv4_mapped", None) or real)

    assert client_address(PROXY, f"{said},{real}", TRUSTED) == expected
    assert client_address(str(real), said, TRUSTED) == expected


@pytest.fixture
def client(server: ServerHandle, tmp_path: Path) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path)
    yield client
    client.close()


def test_guesses_are_limited_by_the_client_behind_a_proxy(client: AppClient) -> None:
    app = Client(ClientAddresses(client.app, TRUSTED))

    def guess(peer: str, forwarded: str) -> int:
        login = {"username": "guessed-behind", "password": "wrong"}
        headers = {"X-Forwarded-For": forwarded}
        answer = app.post(
            "/token", json=login, headers=headers, environ_overrides={"REMOTE_ADDR": peer}
        )
        return answer.status_code

    for number in range(MAX_OF_PAIR):
        assert guess(PROXY, f"198.51.100.{number}, 192.0.2.1") == 401  # of another each, it says
    assert guess(PROXY, "192.0.2.1") == 429
    assert guess(OTHER_PROXY, "192.0.2.1") == 429
    assert guess("192.0.2.1", "192.0.2.2") == 429
    assert guess(PROXY, "192.0.2.2") == 401


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    said = {name: environ[name] for name in environ if "FORWARDED" in name}
    return [json.dumps(said).encode()]


@pytest.mark.parametrize(
    ("peer", "status"),
    [("127.0.0.1", 200), ("::1", 200), (PROXY, 200), ("192.0.2.1", 403), ("::ffff:1.2.3.4", 403)],
)
def test_who_comes_past_the_proxy_is_refused(peer: str, status: int) -> None:
    app = Client(ProxiesOnly(echo, TRUSTED, "https://data.example.org"))

    # Whatever it says of itself.
    answer = app.get(
        "/", headers={"X-Forwarded-For": PROXY}, environ_overrides={"REMOTE_ADDR": peer}
    )

    assert answer.status_code == status
    if status == 403:
        assert ipaddress.ip_address(peer)
        assert "ask by https://data.example.org" in answer.get_json(force=True)["message"]


def test_app_sees_nothing_of_what_proxies_say_otherwise() -> None:
    app = Client(ClientAddresses(echo, TRUSTED))
    names = ("Forwarded", *(f"X-Forwarded-{each}" for each in ("For", "Host", "Proto", "Port")))

    answer = app.get(
        "/", headers=dict.fromkeys(names, "x"), environ_overrides={"REMOTE_ADDR": PROXY}
    )

    assert answer.get_json(force=True) == {}
