"""The command `login` in this process, and a server that answers by a table."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dserverfs.cli.main import main
from tests.support.logins import PASSWORD, Elsewhere, Run


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


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    state = Elsewhere()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            state.asked.append((self.path, json.loads(self.rfile.read(length) or b"null")))
            status, body = state.answers.get(self.path, (404, {"code": 404}))
            if self.path == "/me" and (
                self.headers["Authorization"].removeprefix("Bearer ") not in state.tokens
            ):
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
