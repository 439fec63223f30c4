"""Trouble while a dataset is made or frozen: each has a defined result, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.mount_daemons import stopped, wait_for
from tests.support.mounts import mounted
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, running_server
from tests.support.small_disk import MIB, fill, small_disk
from tests.support.staged_datasets import freeze, leave, status, wait_until

pytest_plugins = ["tests.support.mount_fixtures"]


def named(base: Path, request: pytest.FixtureRequest) -> Path:
    """Make a dataset that is named like the test."""
    path = place_of(base, request)
    path.mkdir()
    return path


def place_of(base: Path, request: pytest.FixtureRequest) -> Path:
    """Return where a dataset goes that is named like the test."""
    name: str = request.node.name.removeprefix("test_").replace("]", "")
    return base / "-".join(part[:35] for part in name.split("["))


def raised(call: Callable[[], object]) -> str:
    with pytest.raises(OSError) as info:  # noqa: PT011 - which one is what is asked
        call()
    return errno.errorcode[info.value.errno or 0]


# What a dataset cannot hold


def test_directory_name_that_is_no_text_disarms(
    base: Path, current_user: Account, request: pytest.FixtureRequest
) -> None:
    dataset = named(base, request)

    assert raised(lambda: os.mkdir(os.fsencode(dataset) + b"/\xff")) == "EILSEQ"

    found = status(current_user, dataset)
    assert (found["armed"], "UTF-8" in found["reason"]) == (False, True)


@pytest.mark.parametrize("make", [os.symlink, os.mkfifo, socket.socket], ids=lambda f: f.__name__)
def test_what_is_refused_while_it_is_uploaded_keeps_it_from_being_frozen(
    eager: Path,
    current_user: Account,
    server: ServerHandle,
    request: pytest.FixtureRequest,
    make: object,
) -> None:
    with stopped(weed_of(server)):
        dataset = place_of(eager, request)
        leave(current_user, dataset)
        wait_until(current_user, dataset, state="uploading")

        if make is socket.socket:
            before = os.getcwd()
            os.chdir(dataset)  # a socket's path must be short
            with socket.socket(socket.AF_UNIX) as bound:
                refusal = raised(lambda: bound.bind("refused"))
            os.chdir(before)
            assert refusal == "EPERM"
        elif make is os.symlink:
            assert raised(lambda: os.symlink("file", dataset / "refused")) == "EPERM"
        else:
            assert raised(lambda: os.mkfifo(dataset / "refused")) == "EPERM"

    found = wait_until(current_user, dataset, state="open")
    assert not found["armed"]
    assert "refused is a" in found["reason"]
    (dataset / "more").write_text("more")
    freeze(current_user, dataset)
    assert sorted(os.listdir(dataset / "data")) == ["file", "more"]


def test_path_that_a_store_could_not_keep_is_too_long(
    base: Path, current_user: Account, request: pytest.FixtureRequest
) -> None:
    directory = dataset = named(base, request)
    for _ in range(5):
        directory = directory / ("n" * 250)
        directory.mkdir()

    assert raised(lambda: (directory / ("n" * 250)).touch()) == "ENAMETOOLONG"

    found = status(current_user, dataset)
    assert not found["armed"]
    assert "longer than 1400 bytes" in found["reason"]


def test_file_that_is_called_data_is_no_directory_of_items(
    base: Path, current_user: Account, request: pytest.FixtureRequest
) -> None:
    dataset = named(base, request)
    (dataset / "data").write_text("content")

    done = current_user.dserverfs("freeze", dataset)
    assert done.returncode == 1
    assert "data is a file" in done.stderr

    freeze(current_user, dataset, "--layout", "items")
    assert (dataset / "data/data").read_text() == "content"


def test_paths_that_lead_elsewhere_after_the_freeze_have_the_right_bytes(
    base: Path, current_user: Account, request: pytest.FixtureRequest
) -> None:
    """Also for the kernel, which has read what the path led to before."""
    dataset = named(base, request)
    (dataset / "data").mkdir()
    (dataset / "data/item").write_text("in data/")
    (dataset / "item").write_text("beside data/")
    with (dataset / "data/item").open() as opened:
        assert opened.read() == "in data/"
        directory = os.open(dataset / "data", os.O_RDONLY)

        freeze(current_user, dataset, "--layout", "items")

        assert (dataset / "data/item").read_text() == "beside data/"
        assert (dataset / "data/data/item").read_text() == "in data/"
        assert (dataset / "item").read_text() == "beside data/"
        assert os.listdir(directory) == ["item"]
        os.close(directory)
        opened.seek(0)
        assert opened.read() == "in data/"


# Who may write


def test_two_mounts_of_two_users_make_datasets_of_one_name(
    base: Path,
    fuse: None,
    current_user: Account,
    ordinary_user: Account,
    server: ServerHandle,
    token: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    if current_user == ordinary_user:
        pytest.skip("needs two users")
    mine = named(base, request)
    (mine / "file").write_text("mine")
    with mounted(ordinary_user, server.base_uri, token, "--freeze-delay", "manual") as other:
        theirs = other / mine.name
        ordinary_user.run("mkdir", theirs, check=True)
        ordinary_user.run("cp", "/etc/hostname", theirs / "file", check=True)
        freeze(current_user, mine)

        done = ordinary_user.dserverfs("freeze", theirs)

        assert done.returncode == 0
        uuid = done.stdout.splitlines()[0].rpartition("/")[2]
        assert f"{mine.name}~{uuid[:8]}" in done.stdout
    with mounted(current_user, server.base_uri, token, "--read-only") as later:
        assert (later / mine.name / "data/file").read_text() == "mine"
        assert (later / f"{mine.name}~{uuid[:8]}").is_dir()


def test_second_mount_neither_freezes_nor_disarms_what_it_does_not_own(
    base: Path,
    current_user: Account,
    server: ServerHandle,
    token: str,
    request: pytest.FixtureRequest,
) -> None:
    dataset = named(base, request)
    (dataset / "file").write_text("content")
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as second:
        seen = second / dataset.name
        assert raised(lambda: os.symlink("x", seen / "link")) == "EBUSY"
        assert raised(lambda: os.setxattr(seen, "user.dserverfs.freeze", b"manual")) == "EBUSY"
        done = current_user.dserverfs("freeze", seen)
        assert done.returncode == 1
        assert "is being written by process" in done.stderr
        assert current_user.dserverfs("discard", seen).returncode == 1

        found = status(current_user, dataset)
        assert (found["state"], found["armed"], found["reason"]) == ("open", True, None)
    freeze(current_user, dataset)


# Changes during the freeze


def test_write_during_the_upload_reopens_it_and_is_in_the_dataset(
    eager: Path,
    current_user: Account,
    server: ServerHandle,
    request: pytest.FixtureRequest,
) -> None:
    with stopped(weed_of(server)):
        dataset = place_of(eager, request)
        leave(current_user, dataset, "first")
        wait_until(current_user, dataset, state="uploading")

        with (dataset / "file").open("w") as file:
            file.write("second")
            assert status(current_user, dataset)["state"] == "open"

    freeze(current_user, dataset)
    assert (dataset / "data/file").read_text() == "second"
    assert dataset.stat().st_nlink


def test_files_that_change_all_the_time_make_no_torn_dataset(
    base: Path, current_user: Account, request: pytest.FixtureRequest
) -> None:
    """Each file of a frozen dataset is of one version, however often it is tried meanwhile."""
    dataset = named(base, request)
    writer = """
import pathlib, sys
directory = pathlib.Path(sys.argv[1])
for number in range(1000, 4000):
    for name in ("a", "b"):
        (directory / name).write_text(str(number) * 9000)
"""
    with current_user.spawn(current_user.python, "-c", writer, dataset) as process:
        wait_for((dataset / "b").exists, "two files")
        while current_user.dserverfs("freeze", dataset).returncode:
            pass
        process.wait(60)
        said = process.communicate()[1]
        assert said == b"" or b"Read-only file system" in said

    for name in "ab":
        content = (dataset / "data" / name).read_text()
        assert content == content[:4] * 9000


def test_discard_during_the_upload_leaves_nothing(
    base: Path, current_user: Account, server: ServerHandle, request: pytest.FixtureRequest
) -> None:
    dataset = named(base, request)
    (dataset / "file").write_text("content")
    with (
        stopped(weed_of(server)),
        current_user.spawn(current_user.python, "-m", "dserverfs", "freeze", dataset) as freezing,
    ):
        found = wait_until(current_user, dataset, state="uploading")
        assert current_user.dserverfs("discard", dataset).returncode == 0
        assert not dataset.exists()
        os.kill(weed_of(server), signal.SIGCONT)
        assert freezing.wait(60) == 1

    assert not Path(found["directory"]).exists()
    assert server.get(f"/uris/{server.backend_uri}/{found['uuid']}").status_code == 404


# Token, server and store


def test_token_that_expires_half_way_leaves_it_sealed_until_there_is_another(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    request: pytest.FixtureRequest,
) -> None:
    token_file = current_user.home / "token-that-expires"
    token_file.write_text(token)
    with mounted(
        *(current_user, server.base_uri, "", "--freeze-delay", "manual"),
        env={"DSERVER_TOKEN_FILE": str(token_file)},
    ) as base:
        dataset = named(base, request)
        (dataset / "file").write_text("content")
        with (
            stopped(weed_of(server)),
            current_user.spawn(
                current_user.python, "-m", "dserverfs", "freeze", dataset
            ) as freezing,
        ):
            wait_until(current_user, dataset, state="uploading")
            token_file.write_text(server.token_for(server.username, exp=int(time.time()) - 60))
            os.kill(weed_of(server), signal.SIGCONT)
            assert freezing.wait(60) == 1
        found = wait_until(current_user, dataset, state="uploading")
        assert "token" in found["reason"]

        token_file.write_text(token)

        wait_until(current_user, dataset, state="frozen")
        assert (dataset / "data/file").read_text() == "content"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_server_that_is_killed_and_comes_back_has_it_frozen_by_itself(
    fuse: None, current_user: Account, test_root: Path, request: pytest.FixtureRequest
) -> None:
    data, port = test_root / "mortal-server", free_port()
    with running_server(data, "--port", str(port)) as server:
        uri, token = server.base_uri, server.token
        with mounted(current_user, uri, token, "--freeze-delay", "manual") as base:
            dataset = named(base, request)
            (dataset / "before").write_text("before")
            server.process.kill()
            server.process.wait()
            (dataset / "after").write_text("after")
            done = current_user.dserverfs("freeze", dataset, timeout_s=120)
            assert done.returncode == 1
            assert done.stderr.endswith("; it stays staged, and is tried again by itself\n")
            found = status(current_user, dataset)
            assert found["state"] == "sealed"
            assert found["reason"]
            assert (dataset / "before").read_text() == "before"

            with running_server(data, "--port", str(port)):
                wait_until(current_user, dataset, state="frozen")
                assert (dataset / "data/before").read_text() == "before"
                assert (dataset / "data/after").read_text() == "after"


# Local disk


@pytest.fixture
def disk(fuse: None, test_root: Path) -> Iterator[Path]:
    with small_disk(test_root / "small-disk", 8 * MIB) as path:
        yield path


@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_full_disk_is_told_to_the_writer_and_disarms(
    current_user: Account,
    server: ServerHandle,
    token: str,
    disk: Path,
    request: pytest.FixtureRequest,
    size: int,
) -> None:
    options = ("--freeze-delay", "0.2", "--staging-dir", str(disk / "staging"))
    with mounted(current_user, server.base_uri, token, *options) as base:
        dataset = named(base, request)
        (dataset / "small").write_bytes(b"before")

        def write_large() -> None:
            with (dataset / "large").open("wb", buffering=0) as file:
                for _ in range(1 + 8 * MIB // size):
                    file.write(os.urandom(size))

        assert raised(write_large) == "ENOSPC"

        found = status(current_user, dataset)
        assert found["state"] == "open"
        assert not found["armed"]
        assert found["reason"] == "writing large: No space left on device"
        assert (dataset / "small").read_bytes() == b"before"
        (dataset / "large").unlink()
        (dataset / "small").write_bytes(b"after")
        freeze(current_user, dataset)
        assert (dataset / "data/small").read_bytes() == b"after"


def test_full_disk_is_named_by_freeze_and_needs_no_space_to_discard(
    current_user: Account,
    server: ServerHandle,
    token: str,
    disk: Path,
    request: pytest.FixtureRequest,
) -> None:
    staging, filler = disk / "staging", disk / "filler"
    options = ("--freeze-delay", "manual", "--staging-dir", str(staging))
    with mounted(current_user, server.base_uri, token, *options) as base:
        dataset = named(base, request)
        (dataset / "file").write_bytes(b"before")
        fill(filler)

        done = current_user.dserverfs("freeze", dataset)

        assert done.returncode == 1
        assert f"the disk that has {staging} is full" in done.stderr
        assert (dataset / "file").read_bytes() == b"before"
        assert current_user.dserverfs("discard", dataset).returncode == 0
        assert not dataset.exists()
        filler.unlink()


# Whoever copies


def test_interrupted_copy_can_be_taken_back_and_done_again(
    base: Path, current_user: Account, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04}").write_bytes(os.urandom(3000))
    dataset = base / "interrupted-copy"

    with current_user.spawn("cp", "-r", tmp_path, dataset) as copying:
        wait_for(lambda: dataset.exists() and len(os.listdir(dataset)) > 100, "a part of the copy")
        copying.send_signal(signal.SIGINT)
        copying.wait(60)
    found = status(current_user, dataset)
    assert found["state"] == "open"
    assert 100 < found["number_of_items"] < 2000
    assert server_knows_not(request, found["uuid"])
    shutil.rmtree(dataset)
    assert not dataset.exists()

    current_user.run("cp", "-r", tmp_path, dataset, check=True)
    freeze(current_user, dataset)
    assert md5_of_files(current_user, dataset / "data") == md5_of_files(current_user, tmp_path)


def server_knows_not(request: pytest.FixtureRequest, uuid: str) -> bool:
    server: ServerHandle = request.getfixturevalue("server")
    uri = DserverURI.parse(server.base_uri).base_uri
    return server.get(f"/uris/{uri}/{uuid}").status_code == 404
