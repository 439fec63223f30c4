"""`dserverfs login` on our server, and on token generators as they are found elsewhere."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base import mountinfo
from dserverfs.cli.arguments import moment
from dserverfs.remote.login import Credentials
from tests.support.accounts import Account
from tests.support.logins import (
    PASSWORD,
    TOKEN,
    Elsewhere,
    Run,
    host_of,
    login_at,
    on_terminal,
    password_of,
)
from tests.support.servers import ServerHandle
from tests.support.web_front import front

pytest_plugins = ["tests.support.login_fixtures"]

# Ours


def test_token_is_kept_and_found(server: ServerHandle, run: Run, tmp_path: Path) -> None:
    host, username = host_of(server), server.username

    status, out, err = run("login", host, "--username", username, stdin=password_of(server))

    file = tmp_path / "config" / "dserverfs" / "tokens" / host
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"user: {username}"
    assert out.splitlines()[1].startswith("expires: 20")
    assert out.splitlines()[2] == f"token file: {file}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert run("whoami", host)[1].startswith(f"user: {username}\n")
    assert os.listdir(file.parent) == [host]


def test_token_is_replaced(server: ServerHandle, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "config" / "dserverfs" / "tokens" / host_of(server)
    file.parent.mkdir(parents=True)
    file.write_text("an old one")

    run("login", server.base_uri, "--username", server.username, stdin=password_of(server))

    assert file.read_text() != "an old one"
    assert run("whoami", host_of(server))[0] == 0


def test_wrong_password_is_told_and_nothing_kept(
    server: ServerHandle, run: Run, tmp_path: Path
) -> None:
    status, out, err = run("login", host_of(server), "--username", server.username)

    assert (status, out) == (1, "")
    assert f"wrong password for user {server.username}" in err
    assert PASSWORD not in err
    assert not (tmp_path / "config").exists()


def test_setting_that_counts_before_it_is_told(server: ServerHandle, run: Run) -> None:
    login = ("login", host_of(server), "--username", server.username)

    status, _, err = run(*login, stdin=password_of(server), DSERVER_TOKEN="other")

    assert status == 0
    assert err == "dserverfs: DSERVER_TOKEN is set, and counts before this token\n"


def test_username_comes_from_the_settings(server: ServerHandle, run: Run) -> None:
    status, out, _ = run(
        "login", host_of(server), stdin=password_of(server), DSERVER_USERNAME=server.username
    )

    assert (status, out.splitlines()[0]) == (0, f"user: {server.username}")


def test_password_is_asked_without_echo(
    server: ServerHandle, current_user: Account, tmp_path: Path
) -> None:
    login = ("login", host_of(server), "--username", server.username)

    status, shown = on_terminal(
        current_user, password_of(server).strip(), *login, XDG_CONFIG_HOME=str(tmp_path)
    )

    assert status == 0, shown
    assert "user: " in shown
    assert password_of(server).strip() not in shown


def test_token_is_taken_from_standard_input(server: ServerHandle, run: Run, tmp_path: Path) -> None:
    status, out, err = run("login", host_of(server), "--token-stdin", stdin=f"{server.token}\n")

    kept = tmp_path / "config/dserverfs/tokens" / host_of(server)
    assert (status, err) == (0, "")
    assert f"user: {server.username}" in out
    assert server.token not in out
    assert kept.read_text() == f"{server.token}\n"


@pytest.mark.parametrize("given", ["", "\n", "two words", "x.y.z", '{"token": 5, "secret": "s"}'])
def test_what_is_no_token_is_told_and_not_kept(
    server: ServerHandle, run: Run, tmp_path: Path, given: str
) -> None:
    status, out, err = run("login", host_of(server), "--token-stdin", stdin=given)

    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert not given.strip() or given.strip() not in err
    assert not (tmp_path / "config").exists()


def test_address_is_kept_and_used_by_all_commands(
    server: ServerHandle, run: Run, tmp_path: Path
) -> None:
    with front(server.url, "/lookup") as proxy:
        host = proxy.url.removeprefix("http://").removesuffix("/lookup")
        login = ("login", f"{proxy.url}/", "--username", server.username)

        status, _, err = run(*login, stdin=password_of(server))

        assert (status, err) == (0, "")
        assert run("whoami", host)[1].startswith(f"user: {server.username}\n")
        kept = tmp_path / "config/dserverfs/addresses" / host
        assert kept.read_text() == f"{proxy.url}\n"
        run("logout", host)
        assert not kept.exists()


def test_address_that_is_the_usual_one_is_not_kept(
    server: ServerHandle, run: Run, tmp_path: Path
) -> None:
    login = ("login", server.url, "--username", server.username)

    assert run(*login, stdin=password_of(server))[0] == 0

    assert os.listdir(tmp_path / "config/dserverfs") == ["tokens"]


@pytest.mark.parametrize("address", ["https://", "https://[", "http://u:secret@h/", "ftp://h"])
def test_address_that_is_none_is_told_without_its_secrets(run: Run, address: str) -> None:
    status, _, err = run("login", address)

    assert status == 1
    assert err.count("\n") == 1
    assert "secret" not in err


def test_logout_deletes_the_token(server: ServerHandle, run: Run, tmp_path: Path) -> None:
    host = host_of(server)
    run("login", host, "--username", server.username, stdin=password_of(server))
    kept = tmp_path / "config/dserverfs/tokens" / host

    first, second = run("logout", host), run("logout", server.base_uri)

    assert first == (0, f"{kept} is deleted\n", "")
    assert second == (0, f"no token is kept for {host}\n", "")
    assert not kept.exists()
    assert run("whoami", host)[0] == 1
    told = run("logout", host, DSERVER_TOKEN="other")[2]
    assert told == "dserverfs: DSERVER_TOKEN is set, and still has a token\n"


def test_whoami_says_when_the_token_ends_and_where_it_is(server: ServerHandle, run: Run) -> None:
    run("login", host_of(server), "--username", server.username, stdin=password_of(server))

    out = run("whoami", host_of(server))[1]

    assert re.search(r"^expires: 20[0-9-]+ [0-9:]+ UTC \(in 6 days\)$", out, re.MULTILINE)
    assert re.search(r"^token: the token in /.*/tokens/", out, re.MULTILINE)


def test_status_tells_to_which_servers_one_is_logged_in(
    server: ServerHandle, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").touch()  # not the mounts of other tests, which may not answer
    monkeypatch.setattr(mountinfo, "_MOUNTINFO", tmp_path / "mountinfo")
    run("login", host_of(server), "--username", server.username, stdin=password_of(server))
    (tmp_path / "config/dserverfs/tokens/[::1]:5000").write_text("")

    status, out, err = run("status", XDG_DATA_HOME=str(tmp_path / "data"))

    assert (status, err) == (0, "")
    told = [line for line in out.splitlines() if line.startswith("logged in: ")]
    assert len(told) == 2
    assert re.fullmatch(rf"logged in: {host_of(server)} as .*: expires .* \(in 6 days\)", told[0])
    assert told[1].startswith("logged in: [::1]:5000: token file /")
    assert "is empty" in told[1]


@pytest.mark.parametrize(
    ("left_s", "told"),
    [
        (1, "(in 1 second)"),
        (90, "(in 90 seconds)"),
        (120, "(in 2 minutes)"),
        (7190, "(in 119 minutes)"),
        (7200, "(in 2 hours)"),
        (86400 * 2 - 1, "(in 47 hours)"),
        (86400 * 2, "(in 2 days)"),
        (-0.5, "(just now)"),
        (-60, "(60 seconds ago)"),
        (-86400 * 3, "(3 days ago)"),
    ],
)
def test_moments_are_told_for_people(left_s: float, told: str) -> None:
    assert moment(2_000_000_000 + left_s, 2_000_000_000).endswith(told)


# Elsewhere


def test_plugin_ldap_gives_a_token(elsewhere: Elsewhere, run: Run) -> None:
    body = {"token": TOKEN, "username": "grumpy", "token_type": "Bearer"}
    elsewhere.answers["/auth/ldap/token"] = (200, body)

    status, out, _ = login_at(elsewhere, run)

    assert status == 0
    assert out.startswith("user: grumpy\nexpires: 2033-05-18 03:33 UTC (in ")
    sent = {"username": "grumpy", "password": PASSWORD}
    assert elsewhere.asked == [("/token", sent), ("/auth/ldap/token", sent), ("/me", None)]


def test_token_generator_at_another_address_is_asked_alone(elsewhere: Elsewhere, run: Run) -> None:
    elsewhere.answers["/generate/token"] = (200, {"status": "success", "token": TOKEN})

    status, _, _ = login_at(
        elsewhere, run, DSERVER_TOKEN_GENERATOR_URL=f"{elsewhere.url}/generate/token"
    )

    assert status == 0
    assert [path for path, _ in elsewhere.asked] == ["/generate/token", "/me"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"status": "fail", "message": "Authentication failed"}),
        (401, {"code": 401, "status": "Unauthorized"}),
        (400, {"code": 400}),
    ],
)
def test_refusal_is_a_wrong_password_however_it_is_said(
    elsewhere: Elsewhere, run: Run, status: int, body: Any
) -> None:
    elsewhere.answers["/token"] = (status, body)

    exit_status, _, err = login_at(elsewhere, run)

    assert exit_status == 1
    assert "wrong password for user grumpy" in err
    assert len(elsewhere.asked) == 1  # not tried again elsewhere


def test_user_the_dserver_does_not_know_is_told(
    elsewhere: Elsewhere, run: Run, tmp_path: Path
) -> None:
    elsewhere.answers["/token"] = (200, {"token": "of.somebody.else"})

    status, _, err = login_at(elsewhere, run)

    assert status == 1
    assert "does it know the user?" in err
    assert not (tmp_path / "config").exists()


def test_server_without_passwords_is_told(elsewhere: Elsewhere, run: Run) -> None:
    status, _, err = login_at(elsewhere, run)

    assert status == 1
    assert "gives no tokens for passwords" in err
    assert err.count("\n") == 1


def test_token_of_an_operator_s_key_is_no_password(elsewhere: Elsewhere, run: Run) -> None:
    """The plugin for OAuth2 has a route of that name, which takes no passwords."""
    elsewhere.answers["/auth/token"] = (400, {"error": "Missing api_key or username"})

    status, _, err = login_at(elsewhere, run)

    assert status == 1
    assert "gives no tokens for passwords" in err


@pytest.mark.parametrize("answer", [{}, [], "token", {"token": 5}])
def test_answer_that_is_none_is_told(elsewhere: Elsewhere, run: Run, answer: Any) -> None:
    elsewhere.answers["/token"] = (200, answer)

    status, _, err = login_at(elsewhere, run)

    assert status == 1
    assert "is this a dserver?" in err


@pytest.mark.parametrize("settings", [{}, {"DSERVER_TOKEN_GENERATOR_URL": "http://192.0.2.1/t"}])
def test_password_is_not_sent_unencrypted_to_another_machine(
    run: Run, settings: dict[str, str]
) -> None:
    server = "127.0.0.1:9" if settings else "192.0.2.1"

    status, _, err = run("login", server, "--username", "x", stdin="", **settings)

    assert status == 1
    assert "192.0.2.1" in err
    assert "would be sent unencrypted; name the server as https://" in err


def test_password_that_is_empty_is_told(server: ServerHandle, run: Run) -> None:
    assert "no password was given" in run("login", host_of(server), stdin="\n")[2]


def test_password_is_in_no_representation() -> None:
    assert PASSWORD not in repr(Credentials("grumpy", PASSWORD))
