from __future__ import annotations

from typing import Any

import jwt
import pytest

from dserverfs import __version__
from tests.support.servers import ServerHandle


def password_of(server: ServerHandle) -> str:
    return (server.data / "password").read_text().strip()


def test_token_is_given_for_the_password(server: ServerHandle) -> None:
    login = {"username": server.username, "password": password_of(server)}

    answer = server.post("/token", login, token="")

    assert answer.status_code == 200
    assert answer.json()["status"] == "success"
    me = server.get("/me", token=answer.json()["token"]).json()
    assert me["username"] == server.username
    assert me["is_admin"] is True


@pytest.mark.parametrize(
    ("username", "password"), [("", ""), ("nobody", ""), (None, "wrong"), ("grumpy", "")]
)
def test_token_is_refused_otherwise(
    server: ServerHandle, username: str | None, password: str
) -> None:
    server.request("PUT", "/users/grumpy", {}).raise_for_status()
    login = {"username": server.username if username is None else username, "password": password}

    answer = server.post("/token", login, token="")

    assert answer.status_code == 401
    assert answer.json() == {
        "code": 401,
        "status": "Unauthorized",
        "message": "wrong username or password",
    }


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 422), ([], 422), ({"username": 1, "password": "x"}, 422), ({"username": "x"}, 422)],
)
def test_token_wants_both_as_strings(server: ServerHandle, body: Any, status: int) -> None:
    assert server.post("/token", body, token="").status_code == status


def test_the_token_file_lasts_a_year(server: ServerHandle) -> None:
    claims = jwt.decode(server.token, options={"verify_signature": False})

    assert claims["sub"] == server.username
    assert claims["exp"] - claims["iat"] == 365 * 24 * 3600


def test_health_and_versions_need_no_token(server: ServerHandle) -> None:
    versions = server.get("/config/versions", token="").json()["versions"]

    assert server.get("/config/health", token="").json() == {"status": "healthy"}
    assert versions["dservercore"] == "0.22.0"


def test_what_the_server_can_do_is_published_under_fixed_names(server: ServerHandle) -> None:
    versions = server.get("/config/versions", token="").json()["versions"]
    abilities = server.get("/config/info").json()["config"]["dserverfs_abilities"]

    assert set(abilities) == {
        *("dserver_signed_url_plugin", "dserverfs_signed_urls", "dserverfs_multipart"),
        *("dserverfs_metadata", "dserverfs_publications", "dserverfs_accounts"),
        *("dserverfs_search", "dserverfs_retrieve"),
    }
    of_0_1_0 = {f"dserverfs.server.{name[10:]}" for name in abilities if "dserverfs_" in name}
    assert set(versions) == {"dservercore", *abilities, *of_0_1_0}
    assert {versions[name] for name in abilities} == {__version__}


def test_the_configuration_shows_no_secret(server: ServerHandle) -> None:
    shown = server.get("/config/info").text

    for name in ("secret_key", "password"):
        assert (server.data / name).read_text().strip() not in shown
    assert "PRIVATE KEY" not in shown
    assert "secretKey" not in shown
    assert str(server.data) not in shown
