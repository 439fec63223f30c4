"""Whatever goes wrong, each question is answered rightly or with an error, never with less."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest

from dserverfs.base.model import DserverURI
from dserverfs.tree.mount_tree import ROOT
from tests.support.broken_disks import DISK_ERRNOS
from tests.support.kernel_questions import (
    CONTEXT,
    Answers,
    Question,
    Refused,
    Walker,
    readdir_reply,
    walker,
)
from tests.support.quirky_server import (
    BASE_URI,
    CONTENTS,
    OTHERS,
    TOKEN,
    Fault,
    QuirkyServer,
    quirky_server,
    says,
)

pytest_plugins = ["tests.support.resolver_fixtures"]
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
        for status in (400, 401, 403, 404, 405, 409, 410, 500, 501, 503)
    },
    **{f"{status} of a proxy": says(status, PAGE, **HTML) for status in (403, 404, 410, 408, 502)},
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
OF_SERVER = r" /(?!store/|config/)"
OF_STORE = r" /store/"


@pytest.fixture(scope="module")
def quirky() -> Iterator[QuirkyServer]:
    with quirky_server() as running:
        running.add(str(uuid.uuid4()), CONTENTS, b"readme: 1\n", name="one", **OTHERS)
        yield running


@pytest.fixture
def walk(quirky: QuirkyServer, tmp_path: Path) -> Iterator[Walker]:
    uri = DserverURI(quirky.url.removeprefix("http://"), BASE_URI)
    entries = list(quirky.entries)
    with walker(uri, TOKEN, tmp_path) as walk:
        yield walk
    quirky.broken = {}
    quirky.permissions, quirky.entries = [BASE_URI], entries


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
    assert len(right) > 60
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


# Of a server that tells no total nobody can tell that it should have listed something.
@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "200 with an empty list"])
def test_trouble_before_anything_is_known(quirky: QuirkyServer, walk: Walker, fault: str) -> None:
    quirky.broken = {" /(uris|uuids|manifests|readmes|signed-urls)": FAULTS[fault]}

    found = walk.explore()

    assert isinstance(found[Question("list", "")], Refused)
    assert not [path for path in walk.inodes if path]
    assert Refused(errno.ENOENT) not in found.values()


@pytest.mark.parametrize("fault", ["403 of a proxy", "404 of the server", "200 with nothing in it"])
def test_trouble_while_what_is_known_is_refreshed(
    quirky: QuirkyServer, walk: Walker, fault: str
) -> None:
    right = walk.explore()

    quirky.broken = {OF_SERVER: FAULTS[fault]}
    asked = quirky.asked(OF_SERVER)
    for _ in range(3):
        walk.age()
        require_right_or_refused(walk.ask_again(right), right)
    assert quirky.asked(OF_SERVER) > asked, "the fault was met"


def test_right_that_is_lost_is_refused_and_empties_no_directory(
    quirky: QuirkyServer, walk: Walker
) -> None:
    right = walk.explore()

    quirky.permissions = []
    walk.client.catalogue.learn_user(walk.client.resolver.user())
    walk.forget()
    found = walk.ask_again(right)

    require_right_or_refused(found, right)
    assert found[Question("list", "")] == Refused(errno.EACCES)
    assert found[Question("lookup", "one")] == Refused(errno.EACCES)
    assert found[Question("read", "one/data/hello.txt")] == Refused(errno.EACCES)


def test_dataset_that_is_gone_is_told_so_of_its_name_alone(
    quirky: QuirkyServer, walk: Walker
) -> None:
    right = walk.explore()
    (entry,) = quirky.entries
    described = quirky.described.pop(entry["uri"])
    walk.forget()

    listed = walk.ask_again(right)  # by a server that lists it all the same
    quirky.entries = []
    gone = walk.ask_again(right)
    then = walk.ask_again(right)
    quirky.described[entry["uri"]] = described

    require_right_or_refused(listed, right)
    assert gone[Question("lookup", "one/data")] == Refused(errno.ENOENT)
    assert set(then[Question("list", "")]) <= {".", ".."}
    assert then[Question("lookup", "one")] == Refused(errno.ENOENT)


CALLS = ("open", "stat", "lstat", "mkdir", "rename", "replace", "scandir", "listdir", "statvfs")


@contextlib.contextmanager
def failing(directory: Path, number: int) -> Iterator[None]:
    """Have every call of the system that names something in a directory fail."""

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and str(path).startswith(str(directory)):
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *args, **options)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrapped(getattr(os, name)))
        patch.setattr(io, "open", wrapped(io.open))
        patch.setattr(sqlite3, "connect", broken_sqlite)
        yield


def broken_sqlite(*args: Any, **options: Any) -> None:
    raise sqlite3.OperationalError("unable to open database file")


@pytest.mark.parametrize("number", DISK_ERRNOS, ids=errno.errorcode.get)
def test_trouble_with_the_disk_of_the_cache(walk: Walker, tmp_path: Path, number: int) -> None:
    right = walk.explore()
    walk.forget()

    with failing(tmp_path / "cache", number):
        found = walk.ask_again(right)

    require_right_or_refused(found, right)
    assert walk.ask_again(right) == right


@pytest.mark.parametrize("number", DISK_ERRNOS, ids=errno.errorcode.get)
def test_trouble_with_the_disk_of_the_staging_area(
    quirky: QuirkyServer, tmp_path: Path, number: int
) -> None:
    quirky.register = [BASE_URI]
    uri = DserverURI(quirky.url.removeprefix("http://"), BASE_URI)
    with walker(uri, TOKEN, tmp_path, is_writable=True) as walk:
        operations: Any = walk.operations

        async def make() -> None:
            directory = await operations.mkdir(ROOT, b"made", 0o755, CONTEXT)
            for name in (b"first", b"second"):
                opened, _ = await operations.create(
                    directory.st_ino, name, 0o644, os.O_WRONLY, CONTEXT
                )
                await operations.write(opened.fh, 0, b"content")
                await operations.release(opened.fh)

        assert walk.ask(make) is None
        right = walk.explore()
        assert right[Question("list", "made")] == ["first", "second"]
        made = walk.inodes["made"]

        with failing(tmp_path / "staging", number):
            found = walk.ask_again(right)
            changes = {
                "mkdir": walk.ask(lambda: operations.mkdir(made, b"new", 0o755, CONTEXT)),
                "dataset": walk.ask(lambda: operations.mkdir(ROOT, b"new", 0o755, CONTEXT)),
                "create": walk.ask(
                    lambda: operations.create(made, b"new", 0o644, os.O_WRONLY, CONTEXT)
                ),
                "open": walk.ask(
                    lambda: operations.open(walk.inodes["made/first"], os.O_WRONLY, CONTEXT)
                ),
                "statfs": walk.ask(lambda: operations.statfs(CONTEXT)),
            }

        require_right_or_refused(found, right)
        expected = Refused(number if number == errno.ENOSPC else errno.EIO)
        assert changes == {
            **dict.fromkeys(changes, expected),
            "statfs": Refused(errno.EIO),
        }
        assert walk.ask_again(right) == right
    quirky.register = []
