"""Logins in tests: the command in this process or on a terminal, and servers of others."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jwt

from tests.support.accounts import Account
from tests.support.servers import ServerHandle

Run = Callable[..., tuple[int, str, str]]
PASSWORD = "correct horse"
TOKEN = jwt.encode({"sub": "grumpy", "exp": 2_000_000_000}, "x" * 32)


def password_of(server: ServerHandle) -> str:
    return (server.data / "password").read_text()


def host_of(server: ServerHandle) -> str:
    return server.url.removeprefix("http://")


def on_terminal(account: Account, answer: str, *arguments: str, **settings: str) -> tuple[int, str]:
    """Run `dserverfs` on a terminal and answer its question; return its status, and all shown."""
    ours, theirs = os.openpty()
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "dserverfs", *arguments]
    with subprocess.Popen(
        account.command(*command),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**account.environment, **settings},
    ) as process:
        os.close(theirs)
        shown, is_answered = b"", False
        with contextlib.suppress(OSError):  # EIO: the other side has ended
            while part := os.read(ours, 1000):
                shown += part
                if not is_answered and re.search(rb"(Password of|Token).*: \Z", shown):
                    os.write(ours, answer.encode() + b"\n")
                    is_answered = True
        os.close(ours)
    return process.returncode, shown.decode()


class Elsewhere:
    """A web server that answers as its table says, and notes what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.tokens = {TOKEN}  # that it takes

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


def login_at(elsewhere: Elsewhere, run: Run, **settings: str) -> tuple[int, str, str]:
    return run("login", elsewhere.host, "--username", "grumpy", **settings)
