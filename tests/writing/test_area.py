"""The staging area: what is on disk, who owns it, what names are taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dserverfs.base.errors import Conflict, Frozen, NameTaken, UsageError
from dserverfs.writing.staging.area import Staging, servers
from dserverfs.writing.staging.dataset import GONE, ORPHANED, StagedDataset, delete_tree
from dserverfs.writing.staging.states import Move, State
from tests.support.patience import LATE_S

SERVER = "localhost:5000"
BASE = "s3://bucket"

# Owns the staged dataset in argv[1] of the area in argv[2], says so, and waits to be killed.
OWNER = """
import sys
from pathlib import Path
from dserverfs.writing.staging.area import Staging
staging = Staging(Path(sys.argv[2]), "localhost:5000").open()
staged = [s for s in staging.datasets("s3://bucket") if s.id == sys.argv[1]][0]
staged.own()
print("owned", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def staging(directory: Path) -> Staging:
    return Staging(directory, SERVER).open()


def again(directory: Path) -> Staging:
    """Return the area as another process would open it."""
    return Staging(directory, SERVER).open()


def only(staging: Staging) -> StagedDataset:
    (staged,) = staging.datasets(BASE)
    return staged


def sealed(staging: Staging) -> StagedDataset:
    staged = staging.create(BASE, "one", "alice")
    assert staged.seal(staged.changes, staged.id)
    return staged


def test_a_new_one_is_open_armed_owned_and_empty(staging: Staging) -> None:
    staged = staging.create(BASE, "one", "alice")

    assert staged.record.state is State.OPEN
    assert staged.record.armed
    assert staged.is_owned
    assert list(staged.tree.iterdir()) == []
    assert staging.datasets(BASE) == [staged]
    assert staging.base_uris() == [BASE]


def test_everything_is_private(staging: Staging, directory: Path) -> None:
    staged = staging.create(BASE, "one", "alice")

    for path in [directory, staged.directory.parent.parent, staged.directory.parent, staged.tree]:
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.expects_log("frozen only by command: it was open")
def test_the_next_process_finds_it_open_and_no_longer_armed(
    staging: Staging, directory: Path
) -> None:
    staging.create(BASE, "one", "alice")
    staging.close()

    found = only(again(directory))
    assert found.record.armed  # until somebody owns it, nobody decides
    found.own()

    assert not found.record.armed
    assert found.record.reason == ORPHANED


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/b", "ä", "x" * 81, ".", ".."])
def test_a_name_that_dtool_refuses_is_refused(staging: Staging, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a dataset's name"):
        staging.create(BASE, name, "alice")

    assert staging.datasets(BASE) == []


def test_a_staged_name_is_taken_in_its_base_uri_only(staging: Staging) -> None:
    staging.create(BASE, "one", "alice")

    with pytest.raises(NameTaken):
        staging.create(BASE, "one", "alice")

    assert staging.create("s3://other", "one", "alice").record.name == "one"


def test_a_renamed_one_frees_its_name(staging: Staging, directory: Path) -> None:
    staged = staging.create(BASE, "one", "alice")

    staging.rename(staged, "two")
    staging.create(BASE, "one", "alice")

    names = {found.record.name for found in again(directory).datasets(BASE)}
    assert names == {"one", "two"}


def test_a_taken_name_cannot_be_renamed_to(staging: Staging) -> None:
    staged = staging.create(BASE, "one", "alice")
    staging.create(BASE, "two", "alice")

    with pytest.raises(NameTaken):
        staging.rename(staged, "two")

    assert staged.record.name == "one"


@pytest.mark.expects_log("so that the next owner has nothing to say")
def test_another_process_owns_it_until_it_is_killed(staging: Staging, directory: Path) -> None:
    staged = staging.create(BASE, "one", "alice")
    staged.disarm("so that the next owner has nothing to say")
    staging.close()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, staged.id, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"owned\n"

        with pytest.raises(Conflict, match=f"process {owner.pid}"):
            staged.require_writable()
        owner.kill()
        owner.wait(LATE_S)

    staged.require_writable()
    assert staged.is_owned


def test_a_lock_that_another_machine_holds_counts(staging: Staging) -> None:
    staged = staging.create(BASE, "one", "alice")
    staging.close()
    lock = staged.directory / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "machine": "f" * 32, "boot": "x", "pid": 7}))

    with pytest.raises(Conflict, match="process 7 on elsewhere"):
        staged.own()


def test_an_owner_that_let_go_leaves_no_name_in_the_lock(staging: Staging) -> None:
    staged = staging.create(BASE, "one", "alice")

    staging.close()

    assert (staged.directory / "lock").read_text() == ""


def test_it_is_sealed_only_if_nothing_happened_meanwhile(staging: Staging) -> None:
    staged = staging.create(BASE, "one", "alice")
    before = staged.changes

    with staged.changing():
        pass

    assert not staged.seal(before, staged.id)
    assert staged.record.state is State.OPEN
    assert staged.seal(staged.changes, staged.id)


def test_it_is_not_sealed_while_something_is_open(staging: Staging) -> None:
    staged = staging.create(BASE, "one", "alice")
    with staged.changing():
        staged.writer_opened()

    assert not staged.seal(staged.changes, staged.id)
    staged.writer_closed()
    assert staged.seal(staged.changes, staged.id)


def test_a_write_reopens_a_sealed_one_and_tells_who_uploads(
    staging: Staging, directory: Path
) -> None:
    staged = sealed(staging)
    before, stop = threading.Event(), threading.Event()
    with staged.stopped_by_writes(before):
        pass

    with staged.stopped_by_writes(stop):
        staged.require_writable()

    assert stop.is_set()
    assert not before.is_set()
    assert only(again(directory)).record.state is State.OPEN


def test_one_that_is_being_registered_can_be_neither_written_nor_discarded(
    staging: Staging,
) -> None:
    staged = sealed(staging)
    staged.move(Move.UPLOAD)
    staged.move(Move.COMPLETE)

    with pytest.raises(Frozen):
        staged.require_writable()
    with pytest.raises(Frozen):
        staged.discard()

    assert staged.tree.is_dir()


def test_a_discarded_one_is_gone_whatever_its_modes(staging: Staging, directory: Path) -> None:
    staged = staging.create(BASE, "one", "alice")
    (staged.tree / "sub").mkdir()
    (staged.tree / "sub/file").write_text("x")

    staged.discard()

    assert staged.is_gone
    assert again(directory).datasets(BASE) == []
    assert staging.create(BASE, "one", "alice").record.name == "one"


def test_what_a_crash_left_behind_is_deleted_at_the_next_start(
    staging: Staging, directory: Path
) -> None:
    staged = staging.create(BASE, "one", "alice")
    base = staged.directory.parent
    (base / ".new-1/tree").mkdir(parents=True)
    (base / ".gone-2/tree").mkdir(parents=True)
    staging.close()

    found = again(directory)

    assert [one.id for one in found.datasets(BASE)] == [staged.id]
    assert sorted(path.name for path in base.iterdir()) == sorted([staged.id, "names.lock"])


@pytest.mark.expects_log("is staged, but cannot be used")
def test_one_with_a_damaged_state_is_named_and_kept(staging: Staging, directory: Path) -> None:
    staged = staging.create(BASE, "one", "alice")
    (staged.tree / "file").write_text("precious")
    staging.close()
    (staged.directory / "state").write_text("{")

    assert again(directory).datasets(BASE) == []

    assert (staged.tree / "file").read_text() == "precious"


@pytest.mark.expects_log("frozen only by command: a disk was full")
def test_only_the_first_reason_disarms(staging: Staging, directory: Path) -> None:
    staged = staging.create(BASE, "one", "alice")

    staged.disarm("a disk was full")
    staged.disarm("something that follows from it")

    assert only(again(directory)).record.reason == "a disk was full"


@pytest.mark.expects_log("frozen only by command: it was open")
def test_one_that_another_process_deleted_is_gone(staging: Staging, directory: Path) -> None:
    staging.create(BASE, "one", "alice").disown()
    other = again(directory)
    known = only(other)

    only(staging).discard()

    assert other.datasets(BASE) == []
    assert known.is_gone


def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    directory = tmp_path / "staging"
    directory.mkdir()
    os.chown(directory, 12345, 12345)

    with pytest.raises(UsageError, match="--staging-dir"):
        Staging(directory, SERVER).open()


def test_servers_are_kept_apart(directory: Path) -> None:
    Staging(directory, "one:1").open().create(BASE, "same", "alice")
    Staging(directory, "two:2").open().create(BASE, "same", "alice")

    assert sorted(servers(directory)) == ["one:1", "two:2"]


def test_two_that_delete_the_same_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    """Without a word in the log, which would fail this test."""
    for attempt in range(5):
        doomed = tmp_path / f"{GONE}{attempt}"
        for number in range(200):
            (doomed / f"{number % 20}").mkdir(parents=True, exist_ok=True)
            (doomed / f"{number % 20}/{number}").touch()
        deleters = [threading.Thread(target=delete_tree, args=(doomed,)) for _ in range(4)]

        for deleter in deleters:
            deleter.start()
        for deleter in deleters:
            deleter.join()

        assert not doomed.exists()
