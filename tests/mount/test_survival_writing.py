"""Daemons that are killed behind a channel while something is written: what is lost says so."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.mount_daemons import Remountable, stopped, wait_for, wait_for_end
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, upload
from tests.support.staged_datasets import freeze, job, status, wait_until
from tests.support.steady_writer import contents_of
from tests.support.successors import kill_daemon, successor_of

pytest_plugins = ["tests.support.mount_fixtures"]


@pytest.fixture
def mount(mount: Remountable) -> Remountable:
    mount.mount("--channel", "on", "--freeze-delay", "0.2")
    return mount


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=os.strerror(number))


def test_file_that_is_written_fails_loudly_and_its_dataset_is_not_frozen_by_half(
    mount: Remountable, current_user: Account
) -> None:
    made = mount.path / "half"
    made.mkdir()
    (made / "closed").write_text("closed\n")
    file = (made / "open").open("wb", buffering=0)
    file.write(b"begin")

    kill_daemon(mount)

    for change in (lambda: file.write(b"end"), lambda: os.fsync(file), lambda: file.truncate(3)):
        with raises(errno.EIO):
            change()
    assert (made / "open").read_bytes() == b"begin"
    file.close()
    assert (made / "closed").read_text() == "closed\n"
    facts = status(current_user, made)
    assert (facts["state"], facts["armed"]) == ("open", False)
    assert "was open when its mount ended" in facts["reason"]
    freeze(current_user, made)
    assert (made / "data/open").read_bytes() == b"begin"


def test_copy_fails_while_it_writes_and_says_so(mount: Remountable, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(30 << 20))
    made = mount.path / "copied"
    made.mkdir()
    script = 'dd if="$1" of="$2" bs=64k 2>&1; echo $?'
    words = ["sh", "-uc", script, "sh", str(source), str(made / "file")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as copy:
        wait_for(lambda: (made / "file").exists(), "that it writes")
        kill_daemon(mount)
        said, _ = copy.communicate()

    *_, result = said.split()
    whole = (made / "file").read_bytes() == source.read_bytes()
    assert whole if result == "0" else "Input/output error" in said


def test_files_that_were_closed_are_there_and_freeze(
    mount: Remountable, current_user: Account
) -> None:
    made = mount.path / "closed"
    for relpath, content in contents_of("closed", 60).items():
        (made / relpath).parent.mkdir(parents=True, exist_ok=True)
        (made / relpath).write_bytes(content)
    before = md5_of_files(current_user, made)
    numbers = {path: path.stat().st_ino for path in made.rglob("*")}

    kill_daemon(mount)

    assert md5_of_files(current_user, made) == before
    assert {path: path.stat().st_ino for path in made.rglob("*")} == numbers
    freeze(current_user, made)
    kill_daemon(mount)
    assert md5_of_files(current_user, made / "data") == before
    assert {path: path.stat().st_ino for path in numbers} == numbers


def test_numbers_follow_renames_and_are_not_given_again(mount: Remountable) -> None:
    made = mount.path / "numbers-and-renames"
    (made / "a/b").mkdir(parents=True)
    (made / "a/b/file").write_text("first")
    os.link(made / "a/b/file", made / "linked")
    (made / "gone").write_text("gone")
    gone, file = (made / "gone").stat().st_ino, (made / "a/b/file").stat().st_ino
    reads = os.open(made / "gone", os.O_RDONLY)
    (made / "gone").unlink()
    (made / "a").rename(made / "c")

    seen = {gone}
    for turn in range(3):
        kill_daemon(mount)

        assert (made / "c/b/file").stat().st_ino == file == (made / "linked").stat().st_ino
        new = made / f"new-{turn}"
        new.write_text(f"new {turn}")
        assert new.stat().st_ino not in seen | {file}
        seen.add(new.stat().st_ino)
    with pytest.raises(OSError, match=r"Stale|Input/output"):  # it had no name: never another's
        os.read(reads, 10)
    os.close(reads)


def test_directory_that_changes_and_was_half_listed_is_an_error_not_its_end(
    mount: Remountable,
) -> None:
    made = mount.path / "listed"
    made.mkdir()
    for number in range(300):
        (made / str(number)).touch()
    with os.scandir(made) as listing:
        names = [next(listing).name]
        (made / "0").unlink()
        kill_daemon(mount)
        with raises(errno.EIO):
            names += [entry.name for entry in listing]
    assert len(os.listdir(made)) == 299


def test_change_that_was_under_way_fails_and_may_have_been_made(mount: Remountable) -> None:
    made = mount.path / "changed"
    made.mkdir()
    (made / "file").touch()
    script = "import os, sys; fd = os.open(sys.argv[1], 0); input('go\\n'); os.fchmod(fd, 0o640)"
    words, pipe = [sys.executable, "-uc", script, str(made / "file")], subprocess.PIPE
    before = mount.daemon()
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as change:
        assert change.stdin is not None
        assert change.stdout is not None
        change.stdout.readline()
        with stopped(before):
            change.stdin.write("go\n")
            change.stdin.flush()
            waits = Path(f"/proc/{change.pid}/wchan")
            wait_for(lambda: "request_wait" in waits.read_text(), "the request")
            os.kill(before, signal.SIGKILL)
        assert "Input/output error" in change.communicate()[1]

    successor_of(mount, before)
    (made / "file").chmod(0o640)
    assert (made / "file").stat().st_mode & 0o777 == 0o640


def test_upload_goes_on_with_the_next_daemon(
    mount: Remountable, current_user: Account, server: ServerHandle
) -> None:
    made = mount.path / "carried-on-with"
    job(current_user, 'mkdir "$1"', made)  # which asks the server for names
    with stopped(weed_of(server)):
        job(current_user, 'echo content > "$1/file"', made)
        wait_for(lambda: mount.states().get("carried-on-with") == "uploading", "uploading")
        number = (made / "file").stat().st_ino
        kill_daemon(mount)
    wait_until(current_user, made, state="frozen")

    assert (made / "data/file").read_text() == "content\n"
    assert (made / "file").stat().st_ino == number


def test_readme_that_is_changed(
    mount: Remountable, server: ServerHandle, current_user: Account
) -> None:
    upload(server, {"a": b"a"}, name="edited", readme=b"a: 1\n")
    readme = mount.path / "edited/README.yml"
    wait_for(readme.exists, "a new listing")
    assert readme.read_text() == "a: 1\n"
    number = readme.stat().st_ino
    file = readme.open("r+b", buffering=0)
    file.write(b"b: 2\n")

    kill_daemon(mount)

    with raises(errno.EIO):
        file.write(b"c: 3\n")
    file.close()
    assert readme.read_text() == "b: 2\n"  # and is not sent before it is saved again
    assert readme.stat().st_ino == number
    readme.write_text("d: 4\n")
    assert readme.read_text() == "d: 4\n"
    saved = readme.with_name("README.yml~")
    saved.write_text("e: 5\n")
    saved.rename(readme)
    number = readme.stat().st_ino
    kill_daemon(mount)
    assert (readme.read_text(), readme.stat().st_ino) == ("e: 5\n", number)


def test_writer_makes_dataset_after_dataset_while_daemons_are_killed(
    mount: Remountable, current_user: Account, tmp_path: Path
) -> None:
    """Each file that a program was not told has failed is there, whole, and none other is half."""
    made = mount.path / "steady"
    made.mkdir()
    dice, told = random.Random(7), {}
    before = [mount.daemon()]
    for turn in range(60):
        content = dice.randbytes(dice.choice([0, 10, 5000, 70_000]))
        if turn % 12 == 5:
            os.kill(before[0], signal.SIGKILL)
        with contextlib.suppress(OSError), (made / f"{turn}").open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file)
            told[f"{turn}"] = content
        if turn % 12 == 5:
            wait_for_end(before[0])
            before = [successor_of(mount, before[0])]

    assert len(told) >= 50
    for name, content in told.items():
        assert (made / name).read_bytes() == content
