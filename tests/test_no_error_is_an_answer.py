"""Whatever goes wrong, each question is answered rightly or with an error, never with less."""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest

from dserverfs.model import DserverURI
from tests.quirky_server import (
    BASE_URI,
    CONTENTS,
    OTHERS,
    TOKEN,
    Fault,
    QuirkyServer,
    quirky_server,
    says,
)
from tests.walking import Answers, Question, Refused, Walker, readdir_reply, walker

pytest_plugins = ["tests.resolving"]
pytestmark = pytest.mark.usefixtures("walks", "no_waits")

HTML = {"Content_Type": "text/html"}
PAGE = b"<html><title>welcome</title>"


def cut(handler: object) -> None:
    """Answer with less than was promised."""
    handler.send_response(200)  # type: ignore[attr-defined]
    handler.send_header("Content-Length", "1000")  # type: ignore[attr-defined]
    handler.end_headers()  # type: ignore[attr-defined]
    handler.wfile.write(b'{"items": {}')  # type: ignore[attr-defined]
    handler.close_connection = True  # type: ignore[attr-defined]


def hang_up(handler: object) -> None:
    handler.close_connection = True  # type: ignore[attr-defined]


FAULTS: dict[str, Fault] = {
    **{
        f"{status} of the server": says(status)
        for status in (400, 401, 403, 404, 405, 408, 409, 410, 429, 500, 501, 502, 503, 504)
    },
    **{
        f"{status} of a proxy": says(status, PAGE, **HTML)
        for status in (400, 401, 403, 404, 405, 408, 410, 500, 502, 503)
    },
    "404 of a store": says(404, b"<Error><Code>NoSuchKey</Code></Error>"),
    "403 of a store": says(403, b"<Error><Code>AccessDenied</Code></Error>"),
    "404 without a body": says(404, b""),
    "404 of another service": says(404, {"message": "no Route matched"}),
    "200 of a proxy": says(200, PAGE, **HTML),
    "200 without a body": says(200, b""),
    "200 with null": says(200, b"null"),
    "200 with nothing in it": says(200, {}),
    "200 with an empty list": says(200, []),
    "204": says(204, b""),
    "redirect to a login": says(302, b"", Location="https://sso.example/login"),
    "JSON that is broken": says(200, b'{"items": {'),
    "body that is cut": cut,
    "connection that is closed": hang_up,
}
# What nothing can be asked of here: of an empty object of a store it is the right answer.
RIGHT_OF_A_STORE = {"200 without a body"}
OF_SERVER = r" /(?!store/|config/)"
OF_STORE = r" /store/"


@pytest.fixture(scope="module")
def quirky() -> Iterator[QuirkyServer]:
    with quirky_server() as running:
        for name in ("first", "second"):
            running.add(str(uuid.uuid4()), CONTENTS, b"readme: 1\n", name=name, **OTHERS)
        yield running


@pytest.fixture
def walk(quirky: QuirkyServer, tmp_path: Path) -> Iterator[Walker]:
    uri = DserverURI(quirky.url.removeprefix("http://"), BASE_URI)
    with walker(uri, TOKEN, tmp_path) as walk:
        yield walk
    quirky.broken = {}
    quirky.permissions = [BASE_URI]


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers to readdir without a kernel, and only faults of ours in the log."""
    monkeypatch.setattr(pyfuse3, "readdir_reply", readdir_reply)
    logger = logging.getLogger("dserverfs")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def require_right_or_refused(found: Answers, right: Answers) -> None:
    assert len(right) > 80
    assert found.keys() == right.keys()
    wrong = {
        question: answer
        for question, answer in found.items()
        if answer != right[question]
        and (not isinstance(answer, Refused) or answer.errno == errno.ENOENT)
    }
    assert not wrong


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("side", [OF_SERVER, OF_STORE], ids=["server", "store"])
def test_trouble_with_all_that_is_known_forgotten(
    quirky: QuirkyServer, walk: Walker, side: str, fault: str
) -> None:
    right = walk.explore()
    walk.forget()

    quirky.broken = {side: FAULTS[fault]}
    found = walk.ask_again(right)

    require_right_or_refused(found, right)
    assert any(isinstance(answer, Refused) for answer in found.values() if answer != right)
    quirky.broken = {}
    assert walk.ask_again(right) == right


@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_before_anything_is_known(quirky: QuirkyServer, walk: Walker, fault: str) -> None:
    quirky.broken = {" /(uris|uuids|manifests|readmes|signed-urls)": FAULTS[fault]}

    found = walk.explore()

    assert isinstance(found[Question("list", "")], Refused)
    assert not [path for path in walk.inodes if path]
    assert Refused(errno.ENOENT) not in found.values()
