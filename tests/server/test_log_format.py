"""The server's log names no link to what is published."""

from __future__ import annotations

import logging
import sys

import pytest

from dserverfs.server.log_format import ServerFormatter, mask


@pytest.mark.parametrize(
    "said",
    [
        "Client disconnected while serving /published/S3cr_t-x/http_manifest.json",
        "Exception on /published/S3cr_t-x [GET]",
    ],
)
def test_links_are_not_in_the_log(said: str) -> None:
    record = logging.LogRecord("waitress", logging.INFO, "", 0, "%s", (said,), None)

    text = ServerFormatter("%(message)s").format(record)

    assert "S3cr" not in text
    assert "/published/..." in text


def test_links_are_not_in_a_traceback() -> None:
    try:
        raise ValueError("/published/S3cr_t-x")
    except ValueError:
        failed = sys.exc_info()
    record = logging.LogRecord("waitress", logging.ERROR, "", 0, "failed", (), failed)

    text = ServerFormatter("%(message)s").format(record)

    assert "ValueError: /published/..." in text


def test_links_are_not_in_gunicorn_s_log_whatever_formats_it() -> None:
    try:
        raise ValueError("/published/S3cr_t-x")
    except ValueError:
        failed = sys.exc_info()
    said = ("/published/S3cr_t-x?100%\n",)
    record = logging.LogRecord("gunicorn.error", logging.ERROR, "", 0, "Error: %s", said, failed)

    assert mask(record)

    text = logging.Formatter("%(message)s").format(record)
    assert "S3cr" not in text
    assert text.startswith("Error: /published/...\nTraceback")
