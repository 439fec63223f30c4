"""DSERVER_TOKEN_COMMAND: run without a shell, seldom, in bounded time, and told of in one line."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from dserverfs.base.errors import NotAuthenticated, UsageError
from dserverfs.client import token_source
from dserverfs.remote import token_command, tokens
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.token_command import token_of
from dserverfs.remote.tokens import TokenSource
from dserverfs.settings import Settings
from tests.support.mount_daemons import wait_for_end
from tests.support.quirky_server import TOKEN, jwt, quirky_server, says

SECRET = "S3CR3T"


def script(path: Path, text: str) -> list[str]:
    """Return the command of a shell script, which is given a secret as its argument."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path), SECRET]


def counting(directory: Path, *said: str) -> list[str]:
    """Return a command that prints another of these each time, and the last one again and again."""
    for number, each in enumerate(said):
        (directory / f"said-{number}").write_text(each)
    last = len(said) - 1
    return script(
        directory / "counting",
        f"cd {directory}; n=$(cat runs 2>/dev/null | wc -l); echo >> runs\n"
        f"[ $n -gt {last} ] && n={last}\ncat said-$n; [ -s said-$n ]",
    )


def runs(directory: Path) -> int:
    path = directory / "runs"
    return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may be run again at once."""
    monkeypatch.setattr(tokens, "COMMAND_PAUSE_S", 0.0)


def test_output_is_the_token() -> None:
    assert token_of(["printf", " %s \\n", TOKEN]) == TOKEN


def test_no_shell_sees_the_words() -> None:
    words = token_source("h", Settings({"DSERVER_TOKEN_COMMAND": "echo '$HOME' \"a;b\" *"}, {}))

    with pytest.raises(NotAuthenticated, match="malformed"):  # of more than one word
        words.token()
    assert token_of(["echo", "$HOME;", "*"]) == "$HOME; *"


def test_command_has_no_settings_and_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DSERVER_TOKEN", "DTOOL_S3_SECRET_ACCESS_KEY_x", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)

    said = token_of(["sh", "-c", "cat; env"])

    assert "PATH=" in said
    assert SECRET not in said


FAILURES = {
    "exit 3": "ended with status 3",
    "echo a; echo 'no such\033[2J entry' >&2; exit 1": "ended with status 1: no such [2J entry",
    "kill -9 $$": "ended with status -9",
    "true": "printed no token",
    "printf ' \\n'": "printed no token",
}


@pytest.mark.parametrize("text", FAILURES)
def test_failure_is_one_line_without_the_arguments(tmp_path: Path, text: str) -> None:
    command = script(tmp_path / "helper", text)

    with pytest.raises(NotAuthenticated) as told:
        token_of(command)

    assert str(told.value) == f"DSERVER_TOKEN_COMMAND: {tmp_path}/helper {FAILURES[text]}"


@pytest.mark.parametrize("command", ["/no/such/program x", "/", "'a\\0b'"])
def test_command_that_cannot_be_run_is_told(command: str) -> None:
    with pytest.raises(NotAuthenticated, match="cannot be run: "):
        token_of([word.replace("\\0", "\0") for word in shlex.split(command)])


@pytest.mark.parametrize("value", ["'", " ", "#"])
def test_setting_that_is_no_command_is_told(value: str) -> None:
    if value == "#":
        assert Settings({"DSERVER_TOKEN_COMMAND": value}, {}).token("h") is not None
        return
    with pytest.raises(UsageError, match="DSERVER_TOKEN_COMMAND: "):
        Settings({"DSERVER_TOKEN_COMMAND": value}, {}).token("h")


def test_command_that_does_not_end_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_command, "RUN_TIMEOUT_S", 0.5)
    command = script(tmp_path / "slow", f"sleep 600 & echo $! > {tmp_path}/pid; wait")

    with pytest.raises(NotAuthenticated, match="slow did not end within"):
        token_of(command)

    wait_for_end(int((tmp_path / "pid").read_text()))


def test_command_is_run_once_for_many_requests(tmp_path: Path) -> None:
    source = TokenSource(None, None, command=counting(tmp_path, TOKEN))

    assert [source.token() for _ in range(5)] == [TOKEN] * 5
    assert runs(tmp_path) == 1


def test_token_that_is_about_to_end_is_asked_for_anew(tmp_path: Path, impatient: None) -> None:
    soon, later = jwt(sub="a", exp=time.time() + 30), jwt(sub="a", exp=time.time() + 3600)
    source = TokenSource(None, None, command=counting(tmp_path, soon, later))

    assert [source.token() for _ in range(3)] == [soon, later, later]
    assert runs(tmp_path) == 2


def test_token_that_is_good_is_used_though_there_is_no_new_one(
    tmp_path: Path, impatient: None
) -> None:
    soon = jwt(sub="a", exp=time.time() + 30)
    source = TokenSource(None, None, command=counting(tmp_path, soon, ""))

    assert [source.token() for _ in range(2)] == [soon] * 2


def test_command_that_fails_is_not_run_for_each_request(tmp_path: Path) -> None:
    source = TokenSource(None, None, command=counting(tmp_path, ""))

    for _ in range(5):
        with pytest.raises(NotAuthenticated, match="ended with status 1"):
            source.token()
    assert runs(tmp_path) == 1


def me(url: str, source: TokenSource) -> str:
    transport = ServerTransport(url, source)
    try:
        username: str = transport.get("/me").json()["username"]
        return username
    finally:
        transport.close()


def test_refused_token_is_asked_for_anew(tmp_path: Path, impatient: None) -> None:
    with quirky_server() as quirky:
        quirky.faults = [says(401, {"msg": "Token has expired"})]
        source = TokenSource(None, None, command=counting(tmp_path, "old", TOKEN))

        assert me(quirky.url, source) == "grumpy"

    assert runs(tmp_path) == 2


def test_token_of_a_command_is_in_no_message(tmp_path: Path) -> None:
    with quirky_server() as quirky:
        quirky.faults = [says(401, {"msg": f"{SECRET} has expired"})] * 3
        source = TokenSource(None, None, command=counting(tmp_path, SECRET))

        with pytest.raises(NotAuthenticated) as told:
            me(quirky.url, source)

    assert "the token of DSERVER_TOKEN_COMMAND" in str(told.value)
    assert SECRET not in str(told.value)
