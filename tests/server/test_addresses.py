"""Where a server listens and what clients reach it by: what is refused, and what is made of it."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from dserverfs.base.errors import UsageError
from dserverfs.server.addresses import Addresses, is_local
from dserverfs.server.store.gateway import Door, TlsFiles
from tests.support.servers import SOURCES, serve_command, serve_environment

TLS = TlsFiles(Path("cert.pem"), Path("key.pem"))
HTTPS = "https://data.example.org"
STORE = "https://store.example.org"
OPEN = "192.0.2.7"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Addresses(host=OPEN), "--host 192.0.2.7: passwords, tokens and data would cross"),
        (Addresses(host="2001:db8::1"), "--host 2001:db8::1: passwords"),
        (Addresses(host=OPEN, store_url=STORE), "--host 192.0.2.7: passwords"),
        (Addresses(host=OPEN, public_url="http://127.0.0.1:5000"), "--host 192.0.2.7: passwords"),
        (Addresses(host=OPEN, public_url="http://data.example.org"), "--host 192.0.2.7: passwords"),
        (Addresses(public_url="http://data.example.org"), "--public-url http://data.example.org: "),
        (Addresses(store_url="http://store.example.org"), "--store-url http://store.example.org: "),
        (Addresses(store_host=OPEN), "--store-host 192.0.2.7: passwords"),
        (Addresses(store_host=OPEN, public_url=HTTPS), "--store-host 192.0.2.7: passwords"),
        (Addresses(host="0.0.0.0", tls=TLS), "--host 0.0.0.0 is every address"),
        (Addresses(host="::", is_insecure=True), "--host :: is every address"),
        (Addresses(store_host="0.0.0.0", tls=TLS), "--store-host 0.0.0.0 is every address"),
        (Addresses(host=OPEN, tls=TLS, public_url="https://0.0.0.0:5000"), "no name of one"),
        (Addresses(store_url=f"{STORE}/s3"), "must have no path"),
        (Addresses(public_url="data.example.org"), "must be http://NAME"),
        (Addresses(public_url="ftp://data.example.org"), "must be http://NAME"),
        (Addresses(public_url="https://"), "must be http://NAME"),
        (Addresses(public_url="https://a:b@data.example.org"), "must be http://NAME"),
        (Addresses(public_url="https://data.example.org:0"), "must be http://NAME"),
        (Addresses(public_url="https://data.example.org:70000"), "must be http://NAME"),
        (Addresses(public_url="https://data.example.org/?x"), "must be http://NAME"),
        (Addresses(public_url="https://data.exa\nmple.org"), "must be http://NAME"),
        (Addresses(public_url="https://d\u00e4ta.example.org"), "must be http://NAME"),
        (Addresses(public_url="https://[::1"), "must be http://NAME"),
        (Addresses(port=65536), "--port 65536: not between"),
        (Addresses(store_port=0), "--store-port 0: not between 1 and"),
        (Addresses(host="256.0.0.1"), "--host 256.0.0.1: "),
        (Addresses(store_host="."), "--store-host .: "),
    ],
    ids=range(28),
)
def test_what_is_unprotected_or_cannot_be_is_refused(given: Addresses, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        given.check()

    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value).replace(given.public_url or " ", "")


@pytest.mark.parametrize(
    ("given", "url", "door", "store"),
    [
        (Addresses(), "http://127.0.0.1:5000", None, ""),
        (Addresses(host="::1"), "http://[::1]:5000", None, ""),
        (Addresses(store_port=9000), "http://127.0.0.1:5000", None, ""),
        (Addresses(store_host="127.0.0.1"), "http://127.0.0.1:5000", None, ""),
        (
            Addresses(host=OPEN, store_host=OPEN, tls=TLS),
            "https://192.0.2.7:5000",
            Door(OPEN, 8333, TLS),
            "https://192.0.2.7:8333",
        ),
        (
            Addresses(host="0.0.0.0", store_host="0.0.0.0", public_url=f"{HTTPS}:5000", tls=TLS),
            f"{HTTPS}:5000",
            Door("0.0.0.0", 8333, TLS),
            f"{HTTPS}:8333",
        ),
        (  # TLS on loopback is wanted by nobody but who says so
            Addresses(store_host="127.0.0.1", tls=TLS),
            "https://127.0.0.1:5000",
            Door("127.0.0.1", 8333, TLS),
            "https://127.0.0.1:8333",
        ),
        (  # proxies on this machine
            Addresses(public_url=f"{HTTPS}:443/lab/", store_url=f"{STORE}:443/", store_port=9000),
            f"{HTTPS}/lab",
            None,
            STORE,
        ),
        (  # proxies on another machine
            Addresses(host=OPEN, public_url=HTTPS, store_host=OPEN, store_url=STORE),
            HTTPS,
            Door(OPEN, 8333, None),
            STORE,
        ),
        (
            Addresses(host=OPEN, store_host=OPEN, store_port=1, is_insecure=True),
            "http://192.0.2.7:5000",
            Door(OPEN, 1, None),
            "http://192.0.2.7:1",
        ),
        (
            Addresses(public_url="HTTPS://Data.Example.ORG"),
            HTTPS,
            None,
            "",
        ),
    ],
    ids=range(11),
)
def test_what_clients_reach_the_server_by_is_what_was_said(
    given: Addresses, url: str, door: Door | None, store: str
) -> None:
    given.check()

    assert (given.url(5000), given.door(), given.store_endpoint()) == (url, door, store)


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        (Addresses(), False),
        (Addresses(public_url=HTTPS), False),
        (Addresses(host=OPEN, public_url=HTTPS), True),
        (Addresses(host=OPEN, public_url=HTTPS, tls=TLS), False),
        (Addresses(host=OPEN, public_url=HTTPS, is_insecure=True), False),
    ],
    ids=range(5),
)
def test_who_listens_beyond_loopback_without_tls_needs_a_proxy(
    given: Addresses, *, needs: bool
) -> None:
    assert given.needs_proxy() is needs


def test_insecure_lets_through_what_is_unprotected_alone() -> None:
    for given in (
        Addresses(host=OPEN),
        Addresses(public_url="http://data.example.org", store_url="http://store.example.org"),
    ):
        dataclasses.replace(given, is_insecure=True).check()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:5000", True),
        ("https://[::1]", True),
        ("http://localhost:1", True),
        (HTTPS, False),
    ],
)
def test_urls_of_this_machine_are_known(url: str, *, expected: bool) -> None:
    assert is_local(url) is expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0", "--public-url", "http://data.example.org"), "say --insecure"),
        (("--store-host", OPEN), "give --tls-cert and --tls-key, or --store-url https://NAME"),
        (("--tls-cert", "/nowhere"), "--tls-cert needs --tls-key"),
        (("--tls-key", "/nowhere"), "--tls-key needs --tls-cert"),
        (("--tls-cert", "/nowhere", "--tls-key", "/nowhere"), "/nowhere: No such file"),
        (("--tls-cert", "/etc/passwd", "--tls-key", "/etc/passwd"), "not a certificate and its"),
        (("--trusted-proxy", "proxy.example.org"), "--trusted-proxy proxy.example.org: no address"),
        (("--trusted-proxy", "10.0.0.1/8"), "--trusted-proxy 10.0.0.1/8: no address"),
    ],
    ids=range(8),
)
def test_serve_says_in_one_line_why_it_does_not_listen(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    ended = subprocess.run(
        serve_command(tmp_path / "data", "--port", "0", *options),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=SOURCES,
        env=serve_environment(),
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("dserverfs: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()
