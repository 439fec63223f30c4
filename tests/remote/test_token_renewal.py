"""Tokens of a login are renewed before they end, and nothing fails when they are not."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from dserverfs.base import locks
from dserverfs.client import token_source
from dserverfs.remote import tokens
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.token_renewal import is_due
from dserverfs.settings import Settings
from tests.support.logins import Elsewhere, Run, host_of
from tests.support.quirky_server import jwt as unsigned
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.login_fixtures"]
NOW_S = 1_000_000.0


@pytest.mark.parametrize(
    ("claims", "due"),
    [
        ({"iat": NOW_S - 49, "exp": NOW_S + 51}, False),
        ({"iat": NOW_S - 51, "exp": NOW_S + 49}, True),
        ({"iat": NOW_S - 100, "exp": NOW_S}, False),  # too late
        ({"exp": NOW_S + 86_401}, False),
        ({"exp": NOW_S + 86_399}, True),
        ({"iat": NOW_S + 5, "exp": NOW_S + 3}, True),  # of a wrong clock
        ({"iat": NOW_S - 100}, False),
        ({}, False),
    ],
)
def test_token_is_due_after_half_of_its_life(claims: dict[str, float], due: bool) -> None:
    assert is_due(unsigned(**claims), NOW_S) is due


def kept_file(tmp_path: Path, host: str) -> Path:
    path = tmp_path / "config/dserverfs/tokens" / host
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def due_token(server: ServerHandle, **claims: Any) -> str:
    now = int(time.time())
    session = {"dserverfs_generation": 0, "dserverfs_renewable_until": now + 90 * 86_400}
    return server.token_for(
        server.username, **{"iat": now - 3600, "exp": now + 1800, **session, **claims}
    )


def test_kept_token_is_renewed_by_the_server(
    server: ServerHandle, run: Run, tmp_path: Path
) -> None:
    file = kept_file(tmp_path, host_of(server))
    old = due_token(server, exp=int(time.time()) + 60)  # of which nothing need be told any more
    file.write_text(f"{old}\n")

    assert run("whoami", host_of(server))[0] == 0
    new = file.read_text().strip()
    out = run("whoami", host_of(server))[1]

    assert new != old
    assert file.stat().st_mode & 0o777 == 0o600
    assert "(in 6 days)" in out
    assert file.read_text().strip() == new  # which is not due


def test_token_of_a_setting_is_not_touched(server: ServerHandle, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(due_token(server))
    before = file.read_text()

    assert run("whoami", host_of(server), DSERVER_TOKEN_FILE=str(file))[0] == 0

    assert file.read_text() == before


def test_one_process_renews_at_a_time(server: ServerHandle, run: Run, tmp_path: Path) -> None:
    file = kept_file(tmp_path, host_of(server))
    file.write_text(due_token(server))
    before = file.read_text()

    with locks.locked(tmp_path / "config/dserverfs/renewal.lock"):
        assert run("whoami", host_of(server))[0] == 0

    assert file.read_text() == before


def signed(**claims: Any) -> str:
    return jwt.encode({"sub": "grumpy", **claims}, "x" * 32)


@pytest.fixture
def old(elsewhere: Elsewhere, tmp_path: Path) -> str:
    """A token that is due, and kept."""
    now = int(time.time())
    token = signed(iat=now - 3600, exp=now + 1800)
    kept_file(tmp_path, elsewhere.host).write_text(token)
    elsewhere.tokens = {token}
    return token


def ask_who(elsewhere: Elsewhere, tmp_path: Path, times: int) -> list[str]:
    """Return whom the server says the kept token is of, asked so often by one process."""
    settings = Settings({"XDG_CONFIG_HOME": str(tmp_path / "config")}, {})
    transport = ServerTransport(elsewhere.url, token_source(elsewhere.host, settings))
    try:
        return [transport.get("/me").json()["username"] for _ in range(times)]
    finally:
        transport.close()


@pytest.mark.parametrize("route", ["/auth/refresh", "/auth/oauth2/refresh"])
def test_token_is_renewed_by_upstream_s_plugins(
    elsewhere: Elsewhere, old: str, tmp_path: Path, route: str
) -> None:
    new = signed(iat=int(time.time()), exp=2_000_000_000)
    elsewhere.answers[route] = (200, {"token": new, "token_type": "Bearer"})
    elsewhere.tokens = {old, new}

    assert ask_who(elsewhere, tmp_path, 1) == ["grumpy"]

    assert kept_file(tmp_path, elsewhere.host).read_text() == f"{new}\n"
    assert (route, {"token": old}) in elsewhere.asked


ANSWERS: dict[str, tuple[int, Any]] = {
    "no route": (404, {"code": 404}),
    "refused": (401, {"error": "Invalid or expired token"}),
    "bad": (400, {"error": "Missing token"}),
    "fault": (500, {"error": "x"}),
    "away": (503, {"error": "x"}),
    "no token": (200, {"token": None}),
    "no object": (200, []),
    "of another": (200, {"token": jwt.encode({"sub": "x", "exp": 2_000_000_000}, "x" * 32)}),
    "earlier": (200, {"token": signed(exp=1_700_000_000)}),
    "opaque": (200, {"token": "opaque"}),
    "two lines": (200, {"token": "a\nb"}),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_token_that_is_not_renewed_is_used_until_it_ends(
    elsewhere: Elsewhere,
    old: str,
    tmp_path: Path,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    elsewhere.answers["/auth/refresh"] = ANSWERS[what]

    assert ask_who(elsewhere, tmp_path, 3) == ["grumpy"] * 3

    assert kept_file(tmp_path, elsewhere.host).read_text() == old
    asked = [path for path, _ in elsewhere.asked if path.endswith("/refresh")]
    assert len(asked) == (2 if what == "no route" else 1)
    assert old not in caplog.text
    assert json.dumps(ANSWERS[what][1]) not in caplog.text


@pytest.mark.expects_log("ends 20")
def test_last_day_of_a_token_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(unsigned(sub="a", exp=time.time() + 80_000))
    source = tokens.TokenSource(None, tmp_path / "token", tell_end=tokens.LastDay())

    for _ in range(3):
        source.token()

    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith(f"the token in {tmp_path}/token ends 20")
    assert told[0].endswith(" UTC: get a new one")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": time.time() + 90_000},
        {"exp": time.time() + 80_000, "iat": time.time() - 6400},  # of a day, just begun
        {"exp": time.time() - 10},
        {},
    ],
)
def test_end_that_is_far_or_past_is_not_told(
    claims: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    token = unsigned(**claims)

    assert tokens.TokenSource(token, None, tell_end=tokens.LastDay()).token() == token

    assert " ends " not in caplog.text
