from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from dservercore import sql_db

from dserverfs import __version__
from dserverfs.server.database import tokens
from dserverfs.server.routes import accounts
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle


def password_of(server: ServerHandle) -> str:
    return (server.data / "password").read_text().strip()


@pytest.mark.parametrize("route", ["/token", "/auth/token"])
def test_token_is_given_for_the_password(server: ServerHandle, route: str) -> None:
    login = {"username": server.username, "password": password_of(server)}

    answer = server.post(route, login, token="")

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


def test_guesses_are_counted_together_whichever_route_they_take(client: AppClient) -> None:
    client.add_user("guessed")
    login = {"username": "guessed", "password": "wrong"}

    statuses = [
        answer.status_code
        for _ in range(4)
        for answer in (
            client.request("POST", "/token", login, username=None),
            client.request("POST", "/auth/token", login, username=None),
            client.browse("/browse/login", login, username=None),
        )
    ]

    assert statuses == [401] * 10 + [429] * 2


def test_server_says_that_it_takes_passwords(server: ServerHandle) -> None:
    answer = server.get("/auth/info", token="").json()

    assert answer == {
        "provider": "password",
        "login_url": None,
        "configured": False,
        "token_url": "/auth/token",
    }


DAY_S = 24 * 3600


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


@pytest.fixture(scope="module")
def client(
    server: ServerHandle, tmp_path_factory: pytest.TempPathFactory, database: str | None
) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("accounts"), database=database)
    yield client
    client.close()


def refresh(client: AppClient, token: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    return client.app.test_client().post("/auth/refresh", json={"token": token}, headers=headers)


def test_token_of_a_login_is_renewed(client: AppClient) -> None:
    client.add_user("renewed")
    with client.app.app_context():
        token = tokens.new_session("renewed", datetime.timedelta(hours=1))

    answer = refresh(client, token)

    assert answer.status_code == 200
    old, new = claims_of(token), claims_of(answer.json["token"])
    assert new["sub"] == "renewed"
    assert new["exp"] - new["iat"] == 7 * DAY_S
    kept = ("dserverfs_renewable_until", "dserverfs_generation")
    assert [new[name] for name in kept] == [old[name] for name in kept]
    assert refresh(client, answer.json["token"]).status_code == 200


@pytest.mark.parametrize(
    ("left_in_days", "life_in_days"), [(90, 7), (8, 7), (2, 2), (0, None), (-1, None)]
)
def test_renewal_ends_with_its_session(
    client: AppClient, left_in_days: int, life_in_days: int | None
) -> None:
    end_s = int(time.time()) + left_in_days * DAY_S
    with client.app.app_context():
        token = tokens.renewed(
            {"sub": "renewed", "dserverfs_renewable_until": end_s}, accounts.LOGIN_TOKEN_LIFE
        )

    life_s = None if token is None else claims_of(token)["exp"] - time.time()
    assert (life_s is None) == (life_in_days is None)
    assert life_s is None or life_in_days is None or abs(life_s - life_in_days * DAY_S) < 60


def test_token_that_was_given_for_a_time_is_not_renewed(client: AppClient) -> None:
    client.add_user("limited")
    with client.app.app_context():
        token = tokens.new_token("limited", datetime.timedelta(days=1))

    answer = refresh(client, token)

    assert answer.status_code == 400
    assert "log in again" in answer.json["message"]


def test_token_that_is_revoked_has_no_successor(client: AppClient) -> None:
    client.add_user("ended")
    with client.app.app_context():
        token = tokens.new_session("ended", accounts.LOGIN_TOKEN_LIFE)
        later = refresh(client, token).json["token"]
        tokens.revoke("ended")
        sql_db.session.commit()
        unaware = tokens.renewed(claims_of(later), accounts.LOGIN_TOKEN_LIFE)

    assert unaware is not None  # as if the request had been checked just before
    for each in (token, later, unaware):
        assert refresh(client, each).status_code == 401


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
        *("dserverfs_search", "dserverfs_retrieve", "dserverfs_block_hashes"),
    }
    of_0_1_0 = {f"dserverfs.server.{name[10:]}" for name in abilities if "dserverfs_" in name}
    of_0_1_0 -= {"dserverfs.server.block_hashes"}  # which came later
    assert set(versions) == {"dservercore", *abilities, *of_0_1_0}
    assert {versions[name] for name in abilities} == {__version__}


def test_the_configuration_shows_no_secret(server: ServerHandle) -> None:
    shown = server.get("/config/info").text

    for name in ("secret_key", "password"):
        assert (server.data / name).read_text().strip() not in shown
    assert "PRIVATE KEY" not in shown
    assert "secretKey" not in shown
    assert str(server.data) not in shown
