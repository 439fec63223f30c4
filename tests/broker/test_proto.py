"""A proto dataset whose disk fails is one that cannot be read, never one that has less."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import NotFound, UsageError
from dserverfs.base.model import identifier_of
from dserverfs.broker.proto import ProtoDataset
from dserverfs.tree import description
from dserverfs.writing.edits import journal
from dserverfs.writing.staging import left_over
from dserverfs.writing.staging.dataset import StagedDataset
from tests.support.broken_disks import DISK_ERRNOS

pytest_plugins = ["tests.support.staging_fixtures"]

# The disk's word that nothing is there is taken.
TROUBLES = [number for number in DISK_ERRNOS if number not in (errno.ENOENT, errno.ENOTDIR)]
RELPATH = "below/deep/item"
QUESTIONS: dict[str, Callable[[ProtoDataset], object]] = {
    "items": ProtoDataset.handles,
    "size": lambda proto: proto.size(RELPATH),
    "date": lambda proto: proto.timestamp(RELPATH),
    "path": lambda proto: proto.item_path(identifier_of(RELPATH)),
    "README": lambda proto: proto.get_text("README.yml"),
}


@pytest.fixture
def proto(staged: StagedDataset) -> ProtoDataset:
    path = staged.tree / RELPATH
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    (staged.tree / "README.yml").write_text("readme: 1")
    client: Any = None  # it is asked for nothing
    return ProtoDataset(staged, client)


def break_disk(
    monkeypatch: pytest.MonkeyPatch, number: int, is_broken: Callable[[str], bool]
) -> None:
    """Have the calls of the system fail that name what is broken."""

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any = ".", *args: Any, **options: Any) -> Any:
            if not isinstance(path, int) and is_broken(os.fspath(path)):
                raise OSError(number, os.strerror(number), path)
            return call(path, *args, **options)

        return checked

    for name in ("scandir", "listdir", "stat", "open"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    monkeypatch.setattr("io.open", wrapped(open))


@pytest.mark.parametrize("number", TROUBLES, ids=errno.errorcode.get)
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_error_of_the_disk_is_told(
    proto: ProtoDataset,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[ProtoDataset], object],
    number: int,
) -> None:
    right = ask(proto)
    with monkeypatch.context() as patch:
        break_disk(patch, number, lambda path: "/below/deep" in path or path.endswith("README.yml"))

        with pytest.raises(UsageError) as told:
            ask(proto)

    assert os.strerror(number) in str(told.value)
    assert ask(proto) == right


def test_item_that_is_not_there_is_told_as_such(proto: ProtoDataset) -> None:
    for relpath in ("below/other", f"{RELPATH}/beneath"):
        with pytest.raises(NotFound):
            proto.size(relpath)


@pytest.mark.parametrize("list_all", [left_over.all_kept, lambda path: [*journal.all_unsent(path)]])
def test_what_is_kept_is_never_told_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, list_all: Callable[[Path], object]
) -> None:
    for relpath in ("server/base/.kept-1/file", ".edits/server/session/1.note"):
        (tmp_path / relpath).parent.mkdir(parents=True)
        (tmp_path / relpath).write_bytes(b"{}")
    break_disk(monkeypatch, errno.EIO, lambda path: path.endswith(("/base", "/session")))

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        list_all(tmp_path)


def test_status_of_what_changes_meanwhile_is_told(
    proto: ProtoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (proto.staged.tree / "data").mkdir()  # beside others: only all files can be counted
    assert description.of_staged(proto.staged, None)["number_of_items"] == 1
    break_disk(monkeypatch, errno.ENOENT, lambda path: path.endswith("/deep"))

    assert description.of_staged(proto.staged, None)["state"] == "open"
