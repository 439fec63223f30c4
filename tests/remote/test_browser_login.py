"""`dserverfs login` by an approval in a browser, where the server has a provider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dserverfs.remote import login
from dserverfs.remote.login import Approval, token_in
from tests.support.accounts import Account
from tests.support.logins import TOKEN, Elsewhere, Run, login_at, on_terminal
from tests.support.mount_daemons import wait_for

pytest_plugins = ["tests.support.login_fixtures"]

INFO = {"provider": "orcid", "configured": True, "login_url": "http://inside:5000/auth/login"}
PAGES = {
    "json": json.dumps({"provider": "orcid", "token": TOKEN, "username": "grumpy"}),
    "lines": json.dumps({"provider": "orcid", "token": TOKEN}, indent=2),
    "token": f" {TOKEN} ",
    "quoted": f'"{TOKEN}"',
    "query": f"http://127.0.0.1:8080/?next=x&token={TOKEN}",
    "fragment": f"https://data.example.org/lookup#token={TOKEN}",
}


@pytest.mark.parametrize("page", PAGES)
def test_token_is_found_in_what_was_copied(page: str) -> None:
    assert token_in(PAGES[page]) == TOKEN


@pytest.mark.parametrize("prefix", ["/auth", "/auth/oauth2"])
@pytest.mark.parametrize("page", ["json", "lines"])
def test_approval_in_a_browser_gives_a_token(
    elsewhere: Elsewhere, current_user: Account, tmp_path: Path, prefix: str, page: str
) -> None:
    elsewhere.answers[f"{prefix}/info"] = (200, INFO)
    opened = tmp_path / "opened"
    program = tmp_path / "bin/xdg-open"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nenv > {opened}.new\necho "$1" >> {opened}.new\nmv {opened}.new {opened}\n'
    )
    program.chmod(0o755)
    settings = {
        "PATH": f"{program.parent}:{current_user.environment['PATH']}",
        "DISPLAY": ":0",
        "DSERVER_CA_FILE": str(tmp_path / "none"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    status, shown = on_terminal(current_user, PAGES[page], "login", elsewhere.host, **settings)

    assert status == 0, shown
    assert "Log in by orcid" in shown
    url = f"{elsewhere.url}{prefix}/login?next={prefix}/token"
    assert f"\r\n  {url}\r\n" in shown
    assert "inside" not in shown
    assert TOKEN not in shown
    assert (tmp_path / "config/dserverfs/tokens" / elsewhere.host).read_text() == f"{TOKEN}\n"
    wait_for(opened.exists, "the page is opened")
    assert opened.read_text().endswith(f"\n{url}\n")
    assert "DSERVER_" not in opened.read_text()


def test_browser_is_left_alone_if_so_asked(
    elsewhere: Elsewhere, current_user: Account, tmp_path: Path
) -> None:
    elsewhere.answers["/auth/info"] = (200, INFO)
    settings = {"DISPLAY": ":0", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    program = tmp_path / "bin/xdg-open"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/opened\n")
    program.chmod(0o755)
    settings["PATH"] = f"{program.parent}:{current_user.environment['PATH']}"

    status, shown = on_terminal(
        current_user, TOKEN, "login", "--no-browser", elsewhere.host, **settings
    )

    assert status == 0, shown
    assert not (tmp_path / "opened").exists()


def test_without_a_terminal_nothing_is_asked(elsewhere: Elsewhere, run: Run) -> None:
    elsewhere.answers["/auth/info"] = (200, INFO)

    status, out, err = run("login", elsewhere.host)

    assert (status, out) == (1, "")
    assert "orcid in a browser" in err
    assert "--token-stdin" in err


@pytest.mark.parametrize(
    "info",
    [
        (200, {**INFO, "configured": False}),
        (200, {"provider": "password", "login_url": None, "configured": False}),
        (200, []),
        (200, "page"),
        (500, {"error": "x"}),
        (401, {"msg": "x"}),
    ],
)
def test_server_without_a_provider_is_asked_for_a_password(
    elsewhere: Elsewhere, run: Run, info: tuple[int, Any]
) -> None:
    elsewhere.answers["/auth/info"] = info
    elsewhere.answers["/token"] = (200, {"token": TOKEN})

    status, out, err = run("login", elsewhere.host)

    assert status == 0, err
    assert out.startswith("user: grumpy\n")


def test_username_asks_for_a_password_where_there_is_a_provider(
    elsewhere: Elsewhere, run: Run
) -> None:
    elsewhere.answers["/auth/info"] = (200, INFO)
    elsewhere.answers["/auth/ldap/token"] = (200, {"token": TOKEN})

    assert login_at(elsewhere, run)[0] == 0


def test_approval_over_plain_http_to_another_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    approval = Approval("http://192.0.2.1/auth/login", "orcid")
    monkeypatch.setattr(login, "approval_page", lambda base_url, trust: approval)

    status, _, err = run("login", "192.0.2.1")

    assert status == 1
    assert "your token would be sent unencrypted" in err
