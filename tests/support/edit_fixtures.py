"""The fixtures of tests of edits; beside their helpers, which tests import."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.writing.edits import sender
from dserverfs.writing.edits.journal import EditSession, root_of
from dserverfs.writing.edits.local_file import LocalFile
from tests.support.edit_sessions import NOTE, README
from tests.support.editing import Bench
from tests.support.quirky_changes import become
from tests.support.quirky_server import QuirkyServer


@pytest.fixture
def bench(quirky: QuirkyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # No kernel tells later what was closed.
    monkeypatch.setattr(sender, "LATE_CLOSE_S", 0.0)
    become(quirky, "own")
    made = Bench(quirky, tmp_path)
    yield made
    made.close()


@pytest.fixture
def session(tmp_path: Path) -> Iterator[EditSession]:
    """The directory of one mount, made under an umask that allows everything."""
    umask = os.umask(0)
    session = EditSession(root_of(tmp_path, "server"))
    session.open()
    yield session
    session.close()
    os.umask(umask)


@pytest.fixture
def file(session: EditSession) -> LocalFile:
    """A README that nobody changed yet."""
    local = session.new_file(b"before")
    file = LocalFile(session, local, NOTE, size_in_bytes=6, mode=0o600)
    file.rename(README)
    return file
