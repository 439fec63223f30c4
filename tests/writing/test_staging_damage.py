"""Damaged files of ours in the staging area: one dataset cannot be used, and says why."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.errors import DserverfsError
from dserverfs.writing.staging import dataset, sealing
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.states import State
from tests.support.accounts import Account
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import job, status

SERVER = "localhost:5000"
BASE = "s3://bucket"
LOGGED = "is staged, but cannot be used|frozen only by command|a crash left there"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    *("format", "id", "server", "base_uri", "name", "creator_username", "created_at"),
    *("state", "armed", "reason", "manual", "uuid"),
)


class Area:
    """A staging area with one dataset that is whole and one to be damaged."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        staging = Staging(directory, SERVER).open()
        self.whole = staging.create(BASE, "whole", "alice").id
        damaged = staging.create(BASE, "damaged", "alice")
        (damaged.tree / "file").write_text("precious")
        self.damaged = damaged.directory
        staging.close()
        (self.damaged / "sealed").write_text("{}")

    def require_one_unusable_at_most(self) -> None:
        """Do what a mount does when it starts and lists; the whole one is never in doubt."""
        staging = Staging(self.directory, SERVER).open()
        usable = {staged.id for staged in staging.datasets(BASE)}
        unusable = staging.unusable(BASE)
        for staged in staging.datasets(BASE):
            try:
                staged.own()
            except (OSError, DserverfsError):
                assert staged.id != self.whole
        staging.close()

        assert self.whole in usable
        assert usable | {path.name for path in unusable} == {self.whole, self.damaged.name}
        assert all("is kept" in why for why in unusable.values())
        assert (self.damaged / "tree/file").read_text() == "precious"


@pytest.fixture(scope="module")
def area() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        yield Area(Path(directory) / "staging")


@pytest.mark.expects_log(LOGGED)
@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300))
def test_state_of_any_bytes_leaves_the_others_usable(area: Area, content: bytes) -> None:
    (area.damaged / "state").write_bytes(content)

    area.require_one_unusable_at_most()


@pytest.mark.expects_log(LOGGED)
@settings(max_examples=120, deadline=None)
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_state_with_a_field_of_any_value_leaves_the_others_usable(
    area: Area, field: str, value: object
) -> None:
    record = json.loads((area.damaged.with_name(area.whole) / "state").read_text())
    changed = {**record, "id": area.damaged.name, "name": "damaged", field: value}
    (area.damaged / "state").write_text(json.dumps(changed))

    area.require_one_unusable_at_most()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def directory(path: Path) -> None:
    missing(path)
    path.mkdir()


def link_to_nothing(path: Path) -> None:
    missing(path)
    path.symlink_to("nowhere")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


DAMAGES = [emptied, missing, directory, link_to_nothing, deep, random_bytes]


@pytest.mark.expects_log(LOGGED)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["state", "lock", "../names.lock"])
def test_damaged_file_leaves_the_others_usable(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    area = Area(tmp_path / "staging")

    damage(area.damaged / name)

    area.require_one_unusable_at_most()


@pytest.mark.expects_log("is staged, but cannot be used")
def test_missing_tree_is_told() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        area = Area(Path(temporary) / "staging")
        shutil.rmtree(area.damaged / "tree")
        staging = Staging(area.directory, SERVER).open()

        assert [staged.id for staged in staging.datasets(BASE)] == [area.whole]
        assert list(staging.unusable(BASE)) == [area.damaged]
        staging.close()


def test_mount_starts_whatever_is_staged(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    """Each of our files damaged in each way, in datasets of all kinds of state."""
    options = ("--freeze-delay", "manual")
    with mounted(current_user, server.base_uri, token, *options) as base:
        names = [f"damaged-{name}-{d.__name__}" for name in OURS for d in DAMAGES]
        script = 'for name in "$@"; do mkdir "$name"; echo x > "$name/file"; done'
        job(
            current_user, script, *(base / name.replace("_", "-") for name in names), base / "whole"
        )
        directories = {
            one["name"]: Path(one["directory"])
            for one in status(current_user)["staged"]
            if one["name"].startswith(("damaged", "whole"))
        }
    for name in OURS:
        for damage in DAMAGES:
            directory = directories[f"damaged-{name}-{damage.__name__}".replace("_", "-")]
            if name == "sealed":
                record = json.loads((directory / "state").read_text())
                sealed = {**record, "state": State.SEALED.value}
                (directory / "state").write_text(json.dumps(sealed))
            damage(directory / name)

    with mounted(current_user, server.base_uri, token, *options) as base:
        assert (base / "whole/file").read_text() == "x\n"
        try:
            wait_for(lambda: not without_reason(current_user, directories), "a reason for each")
        except AssertionError:
            assert without_reason(current_user, directories) == []
        for directory in directories.values():
            assert (directory / "tree/file").read_text() == "x\n"
        job(current_user, 'mkdir "$1"; echo y > "$1/y"', base / "made-beside-the-damaged")
        done = current_user.dserverfs("freeze", base / "made-beside-the-damaged")
        assert done.returncode == 0, done.stderr
        for name, directory in directories.items():
            shutil.rmtree(directory)
            assert not (base / name).exists()


def without_reason(account: Account, directories: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return of which status does not say what is the matter; of the whole one that it was open."""
    known = status(account)
    paths = {str(directory) for directory in directories.values()}
    silent = [mount for mount in known["mounts"] if not mount["answers"]]
    found = [one for one in known["staged"] if one["directory"] in paths]
    return silent + [one for one in found if not one["reason"]]


OURS = ("state", "lock", "sealed")


def hashed_with(directory: Path, damage: Callable[[Path], None]) -> list[str]:
    """Return what a freeze would hash of a file when what is known of hashes is damaged."""
    staging = Staging(directory / "staging", SERVER).open()
    staged = staging.create(BASE, "one", "alice")
    (staged.tree / "file").write_text("precious")
    damage(staged.directory / "hashes")
    described = sealing.describe(staged, None, threading.Event())
    assert described is not None
    described.keep()
    staging.close()
    return [item.hash for item in described.dataset.items.values()]


@pytest.mark.parametrize("damage", [emptied, missing, link_to_nothing], ids=lambda d: d.__name__)
def test_lost_hashes_are_computed_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    assert hashed_with(tmp_path, damage) == [MD5_OF_PRECIOUS]


@pytest.mark.expects_log("files are hashed again|hashes are not kept")
@pytest.mark.parametrize("damage", [directory, deep, random_bytes], ids=lambda d: d.__name__)
def test_hashes_that_cannot_be_read_are_computed_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    assert hashed_with(tmp_path, damage) == [MD5_OF_PRECIOUS]


MD5_OF_PRECIOUS = hashlib.md5(b"precious").hexdigest()


# A full disk


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fill the disk: nothing new can be written durably from when it is called on."""

    def fill() -> None:
        def refuse(path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(dataset, "write_durably", refuse)

    return fill


@pytest.mark.parametrize("state", [State.OPEN, State.SEALED, State.FAILED])
def test_discard_needs_no_space(
    tmp_path: Path, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    staging = Staging(tmp_path / "staging", SERVER).open()
    staged = staging.create(BASE, "one", "alice")
    staged._keep(replace(staged.record, state=state))
    full()
    monkeypatch.setattr(dataset, "_overwritten", lambda path, content: False)

    staged.discard()

    assert not staged.directory.exists()
    assert staging.datasets(BASE) == []


def test_state_is_overwritten_in_place_on_a_full_disk(
    tmp_path: Path, full: Callable[[], None]
) -> None:
    staging = Staging(tmp_path / "staging", SERVER).open()
    staged = staging.create(BASE, "one", "alice")
    assert staged.seal(staged.changes, staged.id)
    full()

    staged.require_writable()

    assert dataset.read_record(staged.directory) == staged.record
    assert staged.record.state is State.OPEN
    staging.close()
