"""What a URI names on a server, and who the user is there."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from dserverfs.base.errors import NotFound, PermissionDenied, Unsupported, UsageError
from dserverfs.base.model import Dataset, DserverURI
from dserverfs.cli.main import main
from dserverfs.mount.daemon import preload
from tests.support.mounts import client_of
from tests.support.quirky_server import BASE_URI, TOKEN, QuirkyServer
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.resolver_fixtures"]

UUID = "11111111-2222-3333-4444-555555555555"


def check(quirky: QuirkyServer, tmp_path: Path, path: str) -> str | None:
    """Return the backend URI that `dserver://SERVER<path>` names."""
    uri = f"dserver://{quirky.url.removeprefix('http://')}{path}"
    with client_of(uri, TOKEN, tmp_path / "cache") as client:
        dataset = client.catalogue.check(DserverURI.parse(uri))
        return None if dataset is None else dataset.uri


def test_uuid_alone_names_the_dataset_wherever_it_is(quirky: QuirkyServer, tmp_path: Path) -> None:
    uri = quirky.add(UUID, {"a": b"a"})

    assert check(quirky, tmp_path, f"/{UUID}") == uri
    assert check(quirky, tmp_path, f"/s3/bucket/{UUID.upper()}") == uri
    assert check(quirky, tmp_path, "/s3/bucket") is None
    assert check(quirky, tmp_path, "") is None


def test_uuid_in_several_base_uris_asks_which(quirky: QuirkyServer, tmp_path: Path) -> None:
    quirky.add(UUID, {"a": b"a"})
    quirky.entries.append({**quirky.entries[0], "base_uri": "s3://b2", "uri": f"s3://b2/{UUID}"})
    quirky.permissions = [BASE_URI, "s3://b2"]

    with pytest.raises(UsageError) as refusal:
        check(quirky, tmp_path, f"/{UUID}")

    assert f"/s3/b2/{UUID}, " in str(refusal.value)
    assert f"/s3/bucket/{UUID}" in str(refusal.value)


def test_what_is_not_there_is_told_with_the_user(quirky: QuirkyServer, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="user grumpy"):
        check(quirky, tmp_path, f"/{UUID}")
    with pytest.raises(NotFound, match="no such dataset"):
        check(quirky, tmp_path, f"/s3/bucket/{UUID}")
    with pytest.raises(PermissionDenied, match=r"user grumpy .* permitted: s3://bucket"):
        check(quirky, tmp_path, "/s3/other")


def test_what_is_permitted_is_told_in_a_few_names(quirky: QuirkyServer, tmp_path: Path) -> None:
    quirky.permissions = [f"s3://bucket-{number}" for number in range(1000)]

    with pytest.raises(PermissionDenied, match=r"permitted: s3://bucket-0, .* and 990 more$"):
        check(quirky, tmp_path, "/s3/other")


def test_server_without_signed_urls_is_refused(quirky: QuirkyServer, tmp_path: Path) -> None:
    quirky.versions = {"dservercore": "0.22.0"}

    with pytest.raises(Unsupported):
        check(quirky, tmp_path, "")


# whoami


def test_whoami_of_the_real_server(
    server: ServerHandle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSERVER_TOKEN_FILE", str(server.token_file))
    address = server.base_uri.split("/")[2]

    for name in (address, f"dserver://{address}"):
        assert main(["whoami", name]) == 0

        user, admin, expires, token, *base_uris = capsys.readouterr().out.splitlines()
        assert user.startswith("user: ")
        assert admin == "admin: yes"
        assert expires.endswith(" days)")
        assert token == f"token: the token in {server.token_file}"
        assert f"rw {server.base_uri}" in base_uris


def test_whoami_tells_reading_from_writing(
    quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSERVER_TOKEN", TOKEN)
    address = quirky.url.removeprefix("http://")

    assert main(["whoami", address]) == 0

    assert capsys.readouterr().out == (
        "user: grumpy\nadmin: no\nexpires: never, or the token does not say\n"
        f"token: the token in DSERVER_TOKEN\nr- dserver://{address}/s3/bucket\n"
    )


@pytest.mark.parametrize("token", ["", "nonsense"])
def test_whoami_without_a_good_token_is_one_line(
    quirky: QuirkyServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
) -> None:
    monkeypatch.setenv("DSERVER_TOKEN", token)
    monkeypatch.delenv("DSERVER_TOKEN_FILE", raising=False)

    assert main(["whoami", quirky.url.removeprefix("http://")]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dserverfs: ")
    assert said.err.count("\n") == 1


def test_user_is_asked_for_once_until_the_first_listing(
    quirky: QuirkyServer, tmp_path: Path
) -> None:
    quirky.add(UUID, {"a": b"a"})
    uri = DserverURI.parse(f"dserver://{quirky.url.removeprefix('http://')}/s3/bucket")

    with client_of(str(uri), TOKEN, tmp_path / "cache") as client:
        only = Future[Dataset | None]()
        only.set_result(client.catalogue.check(uri))
        preload(client.catalogue, uri, only)

        assert client.catalogue.user().search_base_uris == (BASE_URI,)
        assert len(client.catalogue.datasets(BASE_URI, frozenset())) == 1
    assert quirky.asked("^GET /me$") == 1
