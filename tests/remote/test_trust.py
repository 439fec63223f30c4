"""Certificates, path prefixes and proxies, as configured, for dserver and store alike."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dserverfs.base.errors import DserverfsError, ProtocolError, UsageError
from dserverfs.base.loopback import is_loopback
from dserverfs.base.retry import Deadline
from dserverfs.client import whoami
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.objects import Storage
from dserverfs.remote.tokens import TokenSource
from dserverfs.remote.trust import Trust, pool_manager, proxy_for
from dserverfs.settings import Settings
from tests.support.authority import Authority
from tests.support.local_web import Certificates
from tests.support.patience import LATE_S
from tests.support.quirky_server import TOKEN, quirky_server
from tests.support.servers import ServerHandle
from tests.support.web_front import front, make_certificates

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def storage_with() -> Iterator[Callable[[Trust], Storage]]:
    made: list[Storage] = []

    def make(trust: Trust) -> Storage:
        made.append(Storage(trust))
        return made[-1]

    yield make
    for storage in made:
        storage.close()


def settings(server: ServerHandle, **environment: str) -> Settings:
    token = server.token_file.read_text().strip()
    return Settings({"DSERVER_TOKEN": token, **environment}, {})


def test_no_log_has_the_query_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        pool_manager(Trust(), "http://127.0.0.1", None).clear()

    with caplog.at_level(logging.DEBUG, "urllib3"):
        logger = logging.getLogger("urllib3.connectionpool")
        logger.debug('"%s %s" %s', "GET", "/bucket/key?X-Amz-Signature=secret", 200)

    assert '"GET /bucket/key?..." 200' in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("key", ["DSERVER_CA_FILE", "DSERVER_CA_FILE_lab", "REQUESTS_CA_BUNDLE"])
def test_real_server_below_a_prefix_with_a_private_certificate(
    server: ServerHandle, certificates: Certificates, key: str
) -> None:
    with front(server.url, "/lookup", certificates) as before:
        url = {"DSERVER_URL_lab": before.url}

        user = whoami("lab", settings(server, **url, **{key: str(certificates.authority)}))

        assert user.search_base_uris
        assert set(before.requests) == {"/lookup/config/versions", "/lookup/me"}
        with pytest.raises(UsageError, match="DSERVER_CA_FILE"):
            whoami("lab", settings(server, **url))


@pytest.mark.expects_log("not verified")
def test_certificates_are_ignored_if_so_asked(
    server: ServerHandle, certificates: Certificates
) -> None:
    with front(server.url, "", certificates) as before:
        environment = {"DSERVER_URL_lab": before.url, "DSERVER_VERIFY_SSL": "false"}

        assert whoami("lab", settings(server, **environment)).username


def test_store_behind_the_private_certificate_is_read(
    certificates: Certificates, storage_with: Callable[[Trust], Storage]
) -> None:
    with quirky_server() as behind, front(behind.url, "", certificates) as before:
        behind.objects["key"] = b"content"
        url = f"{before.url}/store/key?signature=secret"

        trusting = storage_with(Trust(ca_file=certificates.authority))
        assert trusting.read_object(url, Deadline(LATE_S)) == b"content"
        assert storage_with(Trust(verify=False)).read_object(url, Deadline(LATE_S)) == b"content"
        with pytest.raises(DserverfsError) as refusal:
            storage_with(Trust()).read_object(url, Deadline(LATE_S))
    assert "certificate" in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_wrong_scheme_is_named_with_what_to_set(
    server: ServerHandle, certificates: Certificates
) -> None:
    with front(server.url, "", certificates) as before:
        for url, right in (
            (before.url.replace("https:", "http:"), "https"),
            (server.url.replace("http:", "https:"), "http"),
        ):
            transport = ServerTransport(url, TokenSource(None, None))
            with pytest.raises(DserverfsError) as refusal:
                transport.request("GET", "/me", attempts=1, authenticated=False)
            transport.close()

            assert url in str(refusal.value)
            assert f"set DSERVER_PROTOCOL={right}" in str(refusal.value)


def test_certificate_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")

    for path in (tmp_path / "ca.pem", tmp_path / "missing"):
        with pytest.raises(UsageError, match=str(path)):
            _ = Trust(ca_file=path).context


@pytest.mark.expects_log("sent unencrypted")
def test_proxy_is_used_for_other_hosts_and_not_for_this_one(
    monkeypatch: pytest.MonkeyPatch, storage_with: Callable[[Trust], Storage]
) -> None:
    with quirky_server() as proxy:  # which takes a whole URL as the request's target, too
        proxy.objects["key"] = b"content"
        monkeypatch.setenv("http_proxy", proxy.url)
        url = "http://store.invalid/store/key?s=1"
        environment = {"DSERVER_TOKEN_dserver.invalid": TOKEN}

        assert storage_with(Trust()).read_object(url, Deadline(LATE_S)) == b"content"
        assert whoami("dserver.invalid", Settings(environment, {})).username == "grumpy"

        monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
        url = f"{proxy.url}/store/key?s=1"
        assert storage_with(Trust()).read_object(url, Deadline(LATE_S)) == b"content"


def test_which_urls_go_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy:3128")
    monkeypatch.setenv("https_proxy", "http://user:pw@proxy:3129")
    monkeypatch.setenv("no_proxy", "internal.example,10.0.0.1")

    assert proxy_for("http://a.example/x") == "http://proxy:3128"
    assert proxy_for("https://a.example/x") == "http://user:pw@proxy:3129"
    for url in (
        "http://localhost:5000",
        "http://127.0.0.1:5000",
        "http://[::1]:5000",
        "https://s3.internal.example",
        "http://10.0.0.1:9000",
    ):
        assert proxy_for(url) is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        *(
            ("example.org", "http://example.org/", True),
            ("example.org", "http://a.example.org", True),
        ),
        *(
            (".example.org", "http://Example.ORG", True),
            ("example.org", "http://anexample.org", False),
        ),
        *(("a.org:81", "http://a.org:81/", True), ("a.org:81", "http://a.org/", False)),
        *(
            ("x, a.org", "http://a.org", True),
            ("", "http://a.org", False),
            ("*", "http://a.org", True),
        ),
        *(("10.0.0.0/8", "http://10.1.2.3:9000", True), ("10.0.0.0/8", "http://11.1.2.3", False)),
        *(("10.0.0.0/8", "http://a.org", False), ("fd00::/8", "http://[fd00::1]:9000/", True)),
    ],
)
def test_hosts_that_no_proxy_excludes(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, is_direct: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert (proxy_for(url) is None) == is_direct


def test_proxy_that_cannot_be_spoken_to_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, storage_with: Callable[[Trust], Storage]
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://user:pw@proxy:1080")

    with pytest.raises(UsageError) as refusal:
        storage_with(Trust()).read_object("http://a.example/k", Deadline(5))
    assert "socks5://proxy" in str(refusal.value)
    assert "pw" not in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.3.2.1", True),
        ("[::1]", True),
        ("a.b", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# Settings


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://lab:5000"),
        ({"DSERVER_PROTOCOL": "https"}, "https://lab:5000"),
        ({"DSERVER_URL_lab:5000": "https://x.example/lookup/"}, "https://x.example/lookup"),
        ({"DSERVER_URL_lab": "https://x.example"}, "http://lab:5000"),
        ({"DSERVER_URL": "https://lab:5000/lookup"}, "https://lab:5000/lookup"),
        ({"DSERVER_URL": "https://other/lookup"}, "http://lab:5000"),
    ],
)
def test_base_url(environment: dict[str, str], url: str) -> None:
    assert Settings(environment, {}).base_url("lab:5000") == url
    assert Settings({}, dict(environment)).base_url("lab:5000") == url


@pytest.mark.parametrize("url", ["x.example", "ftp://x", "https://u:pw@x", "https://x?token=pw"])
def test_base_url_that_is_none_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(UsageError, match="DSERVER_URL_lab") as refusal:
        Settings({"DSERVER_URL_lab": url}, {}).base_url("lab")
    assert "pw" not in str(refusal.value)


def test_verification_by_server_and_from_json() -> None:
    settings = Settings({}, {"DSERVER_VERIFY_SSL": False, "DSERVER_VERIFY_SSL_lab": True})

    assert settings.trust("lab").verify
    assert not settings.trust("other").verify
    with pytest.raises(UsageError, match="must be true or false"):
        Settings({"DSERVER_VERIFY_SSL": "perhaps"}, {}).trust("lab")


def test_whoami_names_the_fakes_user() -> None:
    with quirky_server() as fake:
        server = fake.url.removeprefix("http://")

        assert whoami(server, Settings({"DSERVER_TOKEN": TOKEN}, {})).username == "grumpy"


@pytest.mark.parametrize(
    ("days", "begins_in_days", "host", "said"),
    [
        (-1, -40, "127.0.0.1", "it has expired: the server's operator has to renew it"),
        (30, 1, "127.0.0.1", "it is not valid yet by this machine's clock, which says 20"),
        (30, -40, "data.example.org", "it is for another name"),
        (30, -40, "127.0.0.1", "a certificate authority of your own is named by DSERVER_CA_FILE"),
    ],
    ids=["expired", "not yet valid", "another name", "unknown authority"],
)
def test_certificate_that_is_not_accepted_says_why_and_what_to_do(
    tmp_path: Path, days: int, begins_in_days: int, host: str, said: str
) -> None:
    authority = Authority(tmp_path)
    files = authority.certify("server", host, days=days, begins_in_days=begins_in_days)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in files))
    certificates = Certificates(authority.file, both)
    trust = Trust(ca_file=None if "DSERVER_CA_FILE" in said else authority.file)

    with front("http://127.0.0.1:9", "", certificates) as before:
        transport, storage = (
            ServerTransport(before.url, TokenSource("x", None), trust=trust),
            Storage(trust),
        )
        with contextlib.closing(transport), pytest.raises(UsageError) as of_server:
            transport.get("/me")
        with contextlib.closing(storage), pytest.raises(ProtocolError) as of_store:
            storage.read_object(f"{before.url}/x", Deadline(30))

    for error in (str(of_server.value), str(of_store.value)):
        assert "its certificate is not accepted: " in error
        assert said in error
        assert "\n" not in error
        assert "_ssl.c" not in error
