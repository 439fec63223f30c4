"""The access log as a WSGI middleware: what is in a line, and what never is."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dserverfs.server.access_log import Observed, handler_of
from dserverfs.server.routes.metrics import Metrics

ENVIRONMENT = {
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/published/s3cret",
    "QUERY_STRING": "X-Amz-Signature=s3cret",
    "HTTP_AUTHORIZATION": "Bearer s3cret",
    "HTTP_REFERER": "http://h/?s3cret",
    "REMOTE_ADDR": "192.0.2.7",
}


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("203 Whatever", [("Content-Type", "text/plain")])
    return [b"two", b"parts"]


def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise ZeroDivisionError


def asked(observed: Observed, **environ: str) -> dict[str, str]:
    """Ask as a web server does; return the headers of the answer."""
    headers: dict[str, str] = {}
    body = observed({**ENVIRONMENT, **environ}, lambda status, sent: headers.update(sent))
    assert b"".join(body) == b"twoparts"
    body.close()  # type: ignore[attr-defined]
    return headers


@contextlib.contextmanager
def observed(path: Path | str, of: Any = app) -> Iterator[Observed]:
    handler = handler_of(str(path))
    assert handler is not None
    try:
        yield Observed(of, Metrics(""), handler)
    finally:
        with contextlib.suppress(OSError):  # of a full disk
            handler.close()


def test_line_says_what_was_answered_to_whom_and_no_secret(tmp_path: Path) -> None:
    log = tmp_path / "log"

    with observed(log) as app:
        headers = asked(app)

    text = log.read_text()
    line = json.loads(text)
    assert "s3cret" not in text
    assert {key: line[key] for key in ("method", "status", "bytes", "address")} == {
        "method": "GET",
        "status": 203,
        "bytes": 8,
        "address": "192.0.2.7",
    }
    assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert line["request_id"] == headers["X-Request-Id"]
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        ("5f1c-0a.B_", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ("a\n", False),
        ('"}', False),
        ("Bearer é", False),
    ],
)
def test_request_id_is_the_client_s_if_it_is_a_plain_word(
    tmp_path: Path, sent: str, is_kept: bool
) -> None:
    with observed(tmp_path / "log") as app:
        got = asked(app, HTTP_X_REQUEST_ID=sent)["X-Request-Id"]

    assert (got == sent) is is_kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", got)


def test_request_that_fails_is_logged(tmp_path: Path) -> None:
    with observed(tmp_path / "log", failing) as app, pytest.raises(ZeroDivisionError):
        asked(app)

    assert json.loads((tmp_path / "log").read_text())["status"] == 500


def test_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    with observed(log) as app:
        asked(app)
        log.rename(moved)

        asked(app)

    for path in (log, moved):
        assert path.read_text().count("\n") == 1


@pytest.mark.expects_log("a line of the access log cannot be written")
def test_full_disk_costs_no_request_and_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), observed("/dev/full") as app:
        for _ in range(3):
            asked(app)

    assert [record.getMessage() for record in caplog.records if "access log" in record.message] == [
        "a line of the access log cannot be written: [Errno 28] No space left on device"
    ]
