"""Datasets that programs make: frozen at the end of the block, or discarded, and never half."""

from __future__ import annotations

import io
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import dserverfs
from dserverfs.python.sessions import Access, Session, session_of
from tests.support.programs import Programs
from tests.support.staged_states import staged_states

pytest_plugins = ["tests.support.program_fixtures"]


def staged(programs: Programs) -> list[Path]:
    """Return the directories of what is staged."""
    found = staged_states(programs.directory / "DSERVER_STAGING_DIR")
    return [directory for directory, _ in found]


def test_every_kind_of_content_is_put(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"of a path")

    with dserverfs.create(programs.base, "new-kinds") as new:
        new.put("bytes", b"bytes")
        new.put("text", "t\u00e4xt")
        new.put("path", tmp_path / "file")
        new.put("file", io.BytesIO(b"of a file"))
        new.put("array", memoryview(b"array"))
        with new.open("written") as file:
            file.write(b"one")
        with new.open("written", "ab") as file:
            file.write(b" two")
        (new.data / "beside").write_bytes(b"beside")
        new.put("bytes", b"again")
        new.put(".DS_Store", b"named on purpose")
        new.put("__pycache__/x", tmp_path / "file")

    items = dserverfs.open(f"{programs.base}/new-kinds").items
    assert {item.relpath: item.read_bytes() for item in items.values()} == {
        ".DS_Store": b"named on purpose",
        "__pycache__/x": b"of a path",
        "array": b"array",
        "beside": b"beside",
        "bytes": b"again",
        "file": b"of a file",
        "path": b"of a path",
        "text": "t\u00e4xt".encode(),
        "written": b"one two",
    }
    assert staged(programs) == []


def test_exception_in_the_block_leaves_nothing(programs: Programs) -> None:
    def fail() -> None:
        with dserverfs.create(programs.base, "new-failed") as new:
            new.put("x", b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert staged(programs) == []
    with pytest.raises(dserverfs.NotFound):
        dserverfs.open(f"{programs.base}/new-failed")


def test_one_that_cannot_be_frozen_stays_and_is_frozen_later(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = dserverfs.Unreachable("the server is away")

    def fail(*_: object) -> Any:
        raise away

    new = dserverfs.create(programs.base, "new-later")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "freeze", fail)
        with pytest.raises(dserverfs.Unreachable) as failure, new:
            new.put("x", b"x")
    assert failure.value is away
    assert len(staged(programs)) == 1

    dataset = new.freeze()

    assert dataset["x"].read_bytes() == b"x"
    assert staged(programs) == []


def test_frozen_one_is_written_no_more(programs: Programs) -> None:
    with dserverfs.create(programs.base, "new-over") as new:
        new.put("x", b"x")
        frozen = new.freeze()

    assert new.freeze() == frozen
    assert frozen.name == "new-over"
    for change in (
        lambda: new.put("y", b"y"),
        lambda: new.open("x", "ab"),
        lambda: new.tag("late"),
        new.discard,
    ):
        with pytest.raises(dserverfs.DserverfsError, match="new-over: is frozen"):
            change()
    assert {*dserverfs.open(frozen.uri).items} == {"x"}


def test_wrong_input_is_told_and_changes_nothing(programs: Programs, tmp_path: Path) -> None:
    new = dserverfs.create(programs.base, "new-odd")
    for relpath in ("", "/etc/passwd", "../up", "a/../b", "a//b", "x" * 300, "\ud800"):
        with pytest.raises(dserverfs.UsageError):
            new.put(relpath, b"x")
    with pytest.raises(dserverfs.UsageError, match="mode"):
        new.open("x", "r+b")
    with pytest.raises(dserverfs.UsageError):
        new.put("x", tmp_path / "nothing")
    with pytest.raises(dserverfs.UsageError):
        new.put("x", tmp_path)
    (tmp_path / "meant").write_bytes(b"the file")
    with pytest.raises(dserverfs.UsageError, match="is the name of a file"):
        new.put("x", str(tmp_path / "meant"))
    with pytest.raises(dserverfs.UsageError, match="cannot be a tag"):
        new.tag("no/tag")
    new.put("once", b"x")
    with pytest.raises(FileExistsError):
        new.open("once", "xb")
    assert [path.name for path in new.data.iterdir()] == ["once"]
    with pytest.raises(dserverfs.Conflict):
        dserverfs.create(programs.base, "new-odd")
    new.discard()
    for base, name, error in (
        (programs.base, "no name", dserverfs.UsageError),
        (f"dserver://{programs.host}", "x", dserverfs.UsageError),
        (f"{programs.base}/{uuid.uuid4()}", "x", dserverfs.UsageError),
        (f"dserver://{programs.host}/s3/not-ours", "x", dserverfs.PermissionDenied),
    ):
        with pytest.raises(error):
            dserverfs.create(base, name)
    assert staged(programs) == []


def test_content_that_breaks_off_leaves_the_item_that_was_there(programs: Programs) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            content = super().read(3)
            if not content:
                raise OSError("broken off")
            return content

    new = dserverfs.create(programs.base, "new-broken-off")
    new.put("x", b"as it was")

    for relpath in ("x", "sub/y"):
        with pytest.raises(OSError, match="broken off"):
            new.put(relpath, Broken(b"abcdef"))

    assert session_of(Access(programs.host)).new()[0].staged.writers == 0
    frozen = new.freeze()
    assert {relpath: item.read_bytes() for relpath, item in frozen.items.items()} == {
        "x": b"as it was"
    }


def test_forked_process_neither_freezes_nor_discards_it(programs: Programs) -> None:
    program = f"""
import os, sys, dserverfs
refused = None
with dserverfs.create({programs.base!r}, "new-forked") as new:
    new.put("x", b"x")
    pid = os.fork()
    if pid == 0:
        try:
            new.freeze()
        except dserverfs.UsageError as error:
            print(error, flush=True)
        sys.exit(3)  # an exception in the block
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
print({{*dserverfs.open({programs.base!r} + "/new-forked").items}})
"""
    said = subprocess.check_output([sys.executable, "-c", program], text=True)

    assert said == "new-forked: only the process that made it can freeze or discard it\n{'x'}\n"


def test_open_file_keeps_it_from_being_frozen(programs: Programs) -> None:
    new = dserverfs.create(programs.base, "new-open")
    with new.open("x") as file:
        file.write(b"x")
        assert session_of(Access(programs.host)).new()[0].staged.writers == 1
        file.close()
        file.close()

    assert session_of(Access(programs.host)).new()[0].staged.writers == 0
    assert new.freeze()["x"].read_bytes() == b"x"
