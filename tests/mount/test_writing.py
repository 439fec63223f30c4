"""Making datasets in a real mount: written, frozen, and read back elsewhere."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from tests.support.accounts import Account
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze, job, leave, status, wait_until, wait_until_gone

pytest_plugins = ["tests.support.mount_fixtures"]

DEEP = "shared/sub/deep"
EMPTY = "empty-dataset: is empty; dserverfs freeze does it all the same"


@pytest.fixture
def dataset(base: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new dataset, named like the test."""
    path = base / request.node.name.replace("[", "-").replace("]", "")[:70]
    path.mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def elsewhere(
    fuse: None, ordinary_user: Account, server: ServerHandle, token: str
) -> Callable[..., str]:
    """Runs a command on a dataset's paths in another user's mount, which has seen nothing yet."""

    def run(*command: str, path: str) -> str:
        with mounted(ordinary_user, server.base_uri, token, "--read-only") as base:
            done = ordinary_user.run(*command, base / path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_copied_directory_is_a_dataset_for_everybody(
    dataset: Path, current_user: Account, elsewhere: Callable[..., str]
) -> None:
    (dataset / "sub").mkdir()
    (dataset / "sub/ünïcödé.txt").write_text("content")
    (dataset / "README.yml").write_text("---\ndescription: by hand\n")

    uri = freeze(current_user, dataset)

    name = dataset.name
    assert uri == status(current_user, dataset)["uri"]
    assert elsewhere("cat", path=f"{name}/data/sub/ünïcödé.txt") == "content"
    assert "by hand" in elsewhere("cat", path=f"{name}/README.yml")


def test_it_is_frozen_by_itself_when_closed_and_quiet(eager: Path, current_user: Account) -> None:
    dataset = eager / "by-itself"
    leave(current_user, dataset, "half and half")

    found = wait_until(current_user, dataset, state="frozen")

    assert found["name"] == "by-itself"
    assert (dataset / "data/file").read_text() == "half and half"


def test_paths_stay_good_after_the_freeze(dataset: Path, current_user: Account) -> None:
    (dataset / "sub").mkdir()
    (dataset / "sub/file").write_text("content")
    inode = dataset.stat().st_ino
    opened = (dataset / "sub/file").open()
    directory = os.open(dataset / "sub", os.O_RDONLY)
    before = os.getcwd()
    os.chdir(dataset / "sub")
    try:
        freeze(current_user, dataset)

        assert dataset.stat().st_ino == inode
        assert opened.read() == "content"
        assert os.getcwd() == str(dataset / "sub")
        assert Path("file").read_text() == "content"
        assert os.listdir(".") == ["file"]
        assert os.listdir(directory) == ["file"]
        assert (dataset / "sub/file").read_text() == "content"
        assert (dataset / "data/sub/file").read_text() == "content"
        assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]
    finally:
        os.chdir(before)
        os.close(directory)
        opened.close()


def test_old_paths_resolve_in_every_mount(
    dataset: Path, current_user: Account, elsewhere: Callable[..., str]
) -> None:
    (dataset / "sub/deep").mkdir(parents=True)
    (dataset / "sub/deep/file").write_text("content")
    freeze(current_user, dataset)

    assert elsewhere("cat", path=f"{dataset.name}/sub/deep/file") == "content"
    assert (
        elsewhere(
            "find",
            path=f"{dataset.name}/sub",
        ).count("\n")
        == 3
    )
    assert elsewhere("ls", path=dataset.name) == "README.yml\ndata\n"


def test_nothing_in_a_frozen_one_can_be_changed(dataset: Path, current_user: Account) -> None:
    (dataset / "file").write_text("content")
    freeze(current_user, dataset)

    for change in (
        lambda: (dataset / "file").write_text("other"),
        lambda: (dataset / "new").write_text("other"),
        lambda: (dataset / "data/new").mkdir(),
        lambda: (dataset / "file").unlink(),
        lambda: (dataset / "file").chmod(0o600),
        lambda: dataset.rename(dataset.with_name("renamed")),
        lambda: os.truncate(dataset / "data/file", 0),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()


def test_modes_are_kept_while_the_daemon_can_read(dataset: Path, current_user: Account) -> None:
    path = dataset / "secret"
    path.write_text("content")

    path.chmod(0o000)
    assert stat.S_IMODE(path.stat().st_mode) == 0
    path.chmod(0o444)
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    dataset.chmod(0o711)
    assert stat.S_IMODE(dataset.stat().st_mode) == 0o711

    freeze(current_user, dataset)
    assert (dataset / "data/secret").read_text() == "content"


def test_a_directory_is_listed_as_it_was_opened_while_it_changes(dataset: Path) -> None:
    for number in range(300):
        (dataset / f"{number:03}").touch()

    seen = []
    with os.scandir(dataset) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) == 1:
                for number in range(0, 300, 2):
                    (dataset / f"{number:03}").unlink()
                (dataset / "zzz").touch()

    assert len(set(seen)) == len(seen)
    assert {f"{number:03}" for number in range(1, 300, 2)} <= set(seen)


def test_a_deleted_open_file_stays_usable(dataset: Path) -> None:
    with (dataset / "temporary").open("w+b") as file:
        file.write(b"content")
        (dataset / "temporary").unlink()
        file.flush()

        assert os.fstat(file.fileno()).st_size == 7
        os.ftruncate(file.fileno(), 3)
        file.seek(0)
        assert file.read() == b"con"
        os.fchmod(file.fileno(), 0o600)

    assert list(dataset.iterdir()) == []


def test_hard_links_are_one_file_and_two_items(dataset: Path, current_user: Account) -> None:
    (dataset / "one").write_text("content")
    os.link(dataset / "one", dataset / "two")
    (dataset / "two").write_text("changed")

    assert (dataset / "one").stat().st_ino == (dataset / "two").stat().st_ino
    assert (dataset / "one").stat().st_nlink == 2
    freeze(current_user, dataset)

    assert (dataset / "data/one").read_text() == (dataset / "data/two").read_text() == "changed"


def test_what_a_dataset_cannot_hold_is_refused_and_disarms(
    dataset: Path, current_user: Account
) -> None:
    (dataset / "file").write_text("content")
    (dataset / "sub").mkdir()

    with pytest.raises(PermissionError):
        (dataset / "sub/link").symlink_to("file")

    found = status(current_user, dataset)
    assert found["armed"] is False
    assert "sub/link is a symbolic link" in found["reason"]
    freeze(current_user, dataset)


@pytest.mark.parametrize(
    ("name", "target"),
    [(".#notes.txt", "me@host.4711:1700000000"), ("tKf83bZ", "testing")],
    ids=["emacs", "git"],
)
def test_link_that_a_program_only_tries_is_refused_and_leaves_it_armed(
    dataset: Path, current_user: Account, name: str, target: str
) -> None:
    (dataset / "notes.txt").write_text("content")

    with pytest.raises(PermissionError):
        (dataset / name).symlink_to(target)

    assert status(current_user, dataset)["armed"] is True


def test_git_init_leaves_it_armed(dataset: Path, current_user: Account) -> None:
    current_user.run("git", "init", "-q", dataset, check=True)

    found = status(current_user, dataset)
    assert (found["armed"], found["reason"]) == (True, None)


def test_setgid_is_inherited_by_directories(dataset: Path) -> None:
    (dataset / "shared").mkdir()
    (dataset / "shared").chmod(0o2775)

    (dataset / "shared/sub/deep").mkdir(parents=True)
    (dataset / "shared/file").touch()

    modes = {n: stat.S_IMODE((dataset / n).stat().st_mode) & 0o7000 for n in ("shared/file", DEEP)}
    assert modes == {"shared/file": 0, DEEP: stat.S_ISGID}


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK])
def test_pipes_and_sockets_are_refused(dataset: Path, kind: int) -> None:
    with pytest.raises(PermissionError):
        os.mknod(dataset / "special", kind | 0o600)


def test_a_name_that_is_no_text_is_refused(dataset: Path) -> None:
    with pytest.raises(OSError, match="Invalid or incomplete multibyte"):
        open(os.fsencode(dataset) + b"/\xff", "w")  # noqa: SIM115 - it cannot be opened


@pytest.mark.parametrize("name", [".hidden", "a b", "x" * 81, "ünïcödé"])
def test_a_dataset_name_that_dtool_refuses_is_invalid(base: Path, name: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        (base / name).mkdir()


def test_a_taken_name_exists(base: Path, dataset: Path, current_user: Account) -> None:
    with pytest.raises(FileExistsError):
        dataset.mkdir()
    (dataset / "file").write_text("content")
    freeze(current_user, dataset)

    with pytest.raises(FileExistsError):
        dataset.mkdir()


def test_files_beside_datasets_are_not_permitted(base: Path) -> None:
    with pytest.raises(PermissionError):
        (base / "file").write_text("x")


def test_an_unfrozen_dataset_can_be_renamed(
    base: Path, dataset: Path, current_user: Account
) -> None:
    (dataset / "file").write_text("content")
    new = base / "renamed-before-the-freeze"

    dataset.rename(new)

    assert not dataset.exists()
    assert (new / "file").read_text() == "content"
    freeze(current_user, new)
    assert status(current_user, new)["name"] == new.name


def test_an_empty_dataset_is_frozen_by_command_only(eager: Path, current_user: Account) -> None:
    dataset = eager / "empty-dataset"
    job(current_user, 'mkdir "$1"', dataset)
    found = wait_until(current_user, dataset, state="open", reason=EMPTY)
    assert found["number_of_items"] == 0

    freeze(current_user, dataset)

    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]
    assert os.listdir(dataset / "data") == []


def test_an_open_file_keeps_it_from_being_frozen(dataset: Path, current_user: Account) -> None:
    with (dataset / "file").open("w") as file:
        file.write("x")
        done = current_user.dserverfs("freeze", dataset)

    assert done.returncode == 1
    assert "open for writing in it: 1 file" in done.stderr
    freeze(current_user, dataset)


def test_an_ambiguous_layout_waits_for_a_person(dataset: Path, current_user: Account) -> None:
    (dataset / "data").mkdir()
    (dataset / "data/item").write_text("item")
    (dataset / "beside").write_text("beside")

    done = current_user.dserverfs("freeze", dataset)
    assert done.returncode == 1
    assert "--layout items|dtool" in done.stderr
    freeze(current_user, dataset, "--layout", "items")

    assert (dataset / "data/data/item").read_text() == "item"
    assert (dataset / "data/beside").read_text() == "beside"


def test_what_is_left_out_is_kept_and_named(dataset: Path, current_user: Account) -> None:
    (dataset / "data").mkdir()
    (dataset / "data/item").write_text("item")
    (dataset / "beside").write_text("beside")

    staged = Path(status(current_user, dataset)["directory"])

    done = current_user.dserverfs("freeze", dataset, "--layout", "dtool")

    assert done.returncode == 0
    note = next(line for line in done.stdout.splitlines() if "left out" in line)
    kept = Path(note.partition("kept in ")[2].rpartition(": ")[0])
    wait_until_gone(staged)
    assert (kept / "beside").read_text() == "beside"


def test_lost_attributes_are_told_in_one_line(dataset: Path, current_user: Account) -> None:
    (dataset / "script").write_text("#!/bin/sh\n")
    (dataset / "script").chmod(0o755)
    (dataset / "empty").mkdir()

    done = current_user.dserverfs("freeze", dataset)

    assert (
        "not kept in the dataset: empty directories: empty; executable bits: script" in done.stdout
    )
    (note,) = status(current_user, dataset)["notes"]
    assert f"note: {note}" in done.stdout


def test_rm_r_discards(base: Path, dataset: Path, current_user: Account) -> None:
    (dataset / "sub").mkdir()
    (dataset / "sub/file").write_text("x")
    directory = Path(status(current_user, dataset)["directory"])

    assert current_user.run("rm", "-r", dataset).returncode == 0

    assert not dataset.exists()
    assert not directory.exists()


def test_discard_takes_everything(base: Path, dataset: Path, current_user: Account) -> None:
    (dataset / "file").write_text("x")

    done = current_user.dserverfs("discard", dataset)

    assert done.returncode == 0, done.stderr
    assert dataset.name not in os.listdir(base)


def test_name_of_what_was_discarded_is_free(dataset: Path, current_user: Account) -> None:
    """Also if nothing was listed while it was there."""
    for _ in range(2):
        (dataset / "file").write_text("x")
        current_user.dserverfs("discard", dataset, check=True)
        dataset.mkdir()
        assert os.listdir(dataset) == []


def test_setfattr_freezes(dataset: Path, current_user: Account) -> None:
    (dataset / "file").write_text("x")

    os.setxattr(dataset, "user.dserverfs.freeze", b"1")

    assert status(current_user, dataset)["state"] == "frozen"


def test_manual_waits_for_a_command(eager: Path, current_user: Account) -> None:
    dataset = eager / "manual"
    dataset.mkdir()
    os.setxattr(dataset, "user.dserverfs.freeze", b"manual")
    leave(current_user, dataset)
    leave(current_user, eager / "other")

    wait_until(current_user, eager / "other", state="frozen")
    assert status(current_user, dataset)["state"] == "open"
    freeze(current_user, dataset)


def test_extended_attributes_tell_of_datasets_and_items(
    dataset: Path, current_user: Account, server: ServerHandle, token: str
) -> None:
    (dataset / "file").write_text("content")
    freeze(current_user, dataset)
    with mounted(current_user, server.base_uri, token, "-o", "xattr") as base:
        item = base / dataset.name / "data/file"

        known = status(current_user, item)
        for name in ("uuid", "uri", "name", "creator_username", "identifier", "hash"):
            assert os.getxattr(item, f"user.dtool.{name}").decode() == known[name]
        assert float(os.getxattr(item, "user.dtool.frozen_at")) == known["frozen_at"]
        assert os.listxattr(item) == []
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(base / dataset.name, "user.dtool.hash")


def test_without_the_option_there_are_no_extended_attributes(
    dataset: Path, current_user: Account
) -> None:
    (dataset / "file").write_text("content")
    freeze(current_user, dataset)

    with pytest.raises(OSError, match="not supported"):
        os.getxattr(dataset, "user.dtool.uuid")


def test_no_permission_to_register_is_said_at_mkdir(
    fuse: None, current_user: Account, server: ServerHandle
) -> None:
    base_uri = server.add_base_uri(search=["looks-only"])
    uri = DserverURI(DserverURI.parse(server.base_uri).server, base_uri)
    with mounted(current_user, str(uri), server.token_for("looks-only")) as base:
        with pytest.raises(PermissionError):
            (base / "mine").mkdir()

        assert stat.S_IMODE(base.stat().st_mode) == 0o555


def test_umount_freezes_what_is_closed_and_lists_the_rest(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "3600") as base:
        (base / "closed-at-umount").mkdir()
        (base / "closed-at-umount/file").write_text("x")
        (base / "empty-at-umount").mkdir()
        done = current_user.dserverfs("umount", base)

        assert done.returncode == 0
        assert " empty-at-umount (open)" in done.stderr
        assert "closed-at-umount" not in done.stderr
    with mounted(current_user, server.base_uri, token) as base:
        assert (base / "closed-at-umount/data/file").read_text() == "x"
        found = status(current_user, base / "empty-at-umount")
        assert found["state"] == "open"
        (base / "empty-at-umount").rmdir()


def test_a_second_mount_shows_it_read_only(
    base: Path, dataset: Path, current_user: Account, server: ServerHandle, token: str
) -> None:
    (dataset / "file").write_text("content")
    with mounted(current_user, server.base_uri, token) as second:
        seen = second / dataset.name

        assert (seen / "file").read_text() == "content"
        with pytest.raises(OSError, match="busy"):
            (seen / "file").write_text("other")
        with pytest.raises(FileExistsError):
            seen.mkdir()
        freeze(current_user, dataset)
        assert (seen / "data/file").read_text() == "content"
