"""`dserverfs login` on our server, and on token generators as they are found elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest

from dserverfs.cli.main import main
from dserverfs.remote.login import Credentials
from tests.support.accounts import Account
from tests.support.servers import ServerHandle

Run = Callable[..., tuple[int, str, str]]
PASSWORD = "correct horse"
TOKEN = jwt.encode({"sub": "grumpy", "exp": 2_000_000_000}, "x" * 32)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dserverfs`, with a configuration directory of its own and no settings."""
    for name in [name for name in os.environ if name.startswith("DSERVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*arguments: str, stdin: str = PASSWORD + "\n", **settings: str) -> Any:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.StringIO(stdin))
            status = main(arguments)
        return (status, *capsys.readouterr())

    return run


def password_of(server: ServerHandle) -> str:
    return (server.data / "password").read_text()


def host_of(server: ServerHandle) -> str:
    return server.url.removeprefix("http://")


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
    ours, theirs = os.openpty()
    login = ("login", host_of(server), "--username", server.username)
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "dserverfs", *login]
    with subprocess.Popen(
        current_user.command(*command),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**current_user.environment, "XDG_CONFIG_HOME": str(tmp_path)},
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side has ended
            while part := os.read(ours, 1000):
                shown += part
                if shown.endswith(b": ") and b"Password" in shown and b"user:" not in shown:
                    os.write(ours, password_of(server).encode())
        os.close(ours)

    assert process.returncode == 0, shown
    assert b"user: " in shown
    assert password_of(server).strip().encode() not in shown


# Elsewhere


class Elsewhere:
    """A web server that answers as its table says, and notes what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    state = Elsewhere()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            state.asked.append((self.path, json.loads(self.rfile.read(length) or b"null")))
            status, body = state.answers.get(self.path, (404, {"code": 404}))
            if self.path == "/me" and self.headers["Authorization"] != f"Bearer {TOKEN}":
                status, body = 401, {"msg": "Missing Authorization Header"}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        state.url = f"http://127.0.0.1:{web.server_address[1]}"
        state.answers["/me"] = (
            200,
            {
                "username": "grumpy",
                "is_admin": False,
                "search_permissions_on_base_uris": [],
                "register_permissions_on_base_uris": [],
            },
        )
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        yield state
        web.shutdown()
        thread.join()


def login_at(elsewhere: Elsewhere, run: Run, **settings: str) -> tuple[int, str, str]:
    return run("login", elsewhere.host, "--username", "grumpy", **settings)


def test_plugin_ldap_gives_a_token(elsewhere: Elsewhere, run: Run) -> None:
    body = {"token": TOKEN, "username": "grumpy", "token_type": "Bearer"}
    elsewhere.answers["/auth/ldap/token"] = (200, body)

    status, out, _ = login_at(elsewhere, run)

    assert status == 0
    assert out.splitlines()[:2] == ["user: grumpy", "expires: 2033-05-18 03:33 UTC"]
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
    assert "would be sent unencrypted; set DSERVER_PROTOCOL=https, or say --insecure" in err


def test_password_that_is_empty_is_told(server: ServerHandle, run: Run) -> None:
    assert "no password was given" in run("login", host_of(server), stdin="\n")[2]


def test_password_is_in_no_representation() -> None:
    assert PASSWORD not in repr(Credentials("grumpy", PASSWORD))
