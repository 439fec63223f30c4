"""Power cuts while datasets are made: what was synced or sealed is there, for the next mount."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.ext4_disk import after_power_cut, ext4_disk
from tests.support.mount_daemons import Remountable, remountable, stopped
from tests.support.recorded_disk import RecordedDisk, recorded_disk
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import freeze, status, wait_until
from tests.support.synced_files import WAYS

CONTENT = os.urandom(300_000)


@pytest.fixture
def disk(test_root: Path) -> Iterator[Path]:
    with ext4_disk(test_root / "disk-before-the-cut") as path:
        yield path


@pytest.fixture
def mount(
    fuse: None, current_user: Account, server: ServerHandle, token: str, disk: Path
) -> Iterator[Remountable]:
    """A mount whose staging directory is on that disk."""
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as mount:
        mount.staging = disk / "staging"
        mount.mount("--freeze-delay", "manual")
        yield mount


def mount_with_disk(mount: Remountable, disk: Path) -> None:
    """Mount again, with another disk in the computer."""
    mount.staging = disk / "staging"
    mount.mount("--freeze-delay", "manual")


def test_power_cut_loses_no_file_that_was_synced(
    mount: Remountable, disk: Path, test_root: Path
) -> None:
    dataset = mount.path / "synced"
    (dataset / "sub").mkdir(parents=True)
    with (dataset / "sub/file").open("wb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(dataset / "sub", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)

    with after_power_cut(disk, test_root / "disk-after-the-cut") as left:
        mount.end(signal.SIGKILL)
        mount_with_disk(mount, left)

        found = status(mount.account, dataset)
        assert (found["state"], found["armed"]) == ("open", False)
        assert (dataset / "sub/file").read_bytes() == CONTENT
        freeze(mount.account, dataset)
        mount.end(signal.SIGTERM)


def test_power_cut_during_an_upload_loses_nothing(
    mount: Remountable, disk: Path, test_root: Path, server: ServerHandle
) -> None:
    dataset = mount.path / "uploading-at-the-cut"
    dataset.mkdir()
    for number in range(20):
        (dataset / f"{number}").write_bytes(CONTENT[number:])
    made = md5_of_files(mount.account, dataset)
    account = mount.account
    with contextlib.ExitStack() as stack:
        with (
            stopped(weed_of(server)),
            account.spawn(account.python, "-m", "dserverfs", "freeze", dataset) as freezing,
        ):
            wait_until(account, dataset, state="uploading")
            left = stack.enter_context(after_power_cut(disk, test_root / "disk-after-the-cut"))
            mount.end(signal.SIGKILL)
            assert freezing.wait(60) == 1
        mount_with_disk(mount, left)

        wait_until(account, dataset, state="frozen")
        assert md5_of_files(account, dataset / "data") == made
        mount.end(signal.SIGTERM)


@pytest.fixture(params=["ext4", "xfs"])
def recorded(request: pytest.FixtureRequest, test_root: Path) -> Iterator[RecordedDisk]:
    with recorded_disk(test_root / f"recorded-{request.param}", request.param) as disk:
        yield disk


def test_disk_loses_what_was_not_flushed_and_nothing_else(recorded: RecordedDisk) -> None:
    synced: dict[str, int] = {}
    for number in range(40):
        path = recorded.path / f"{number}"
        path.write_bytes(CONTENT[number:5000])
        if number % 2:
            WAYS["fsync"](path, CONTENT[number:5000])
            synced[path.name] = recorded.position()
    dice = random.Random(1)
    lost = 0

    for position in sorted(synced.values())[::4]:
        with recorded.after_power_cut(position, dice.choice([0.0, 0.5]), dice) as left:
            for number in range(40):
                path = left / f"{number}"
                if synced.get(path.name, position + 1) <= position:
                    assert path.read_bytes() == CONTENT[number:5000]
                else:
                    lost += not path.exists()

    assert lost


def test_file_outlasts_a_power_cut_in_whatever_way_it_was_synced(
    fuse: None, current_user: Account, server: ServerHandle, token: str, recorded: RecordedDisk
) -> None:
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as mount:
        mount.staging = recorded.path / "staging"
        mount.mount("--freeze-delay", "manual")
        dataset = mount.path / f"synced-on-{recorded.kind}"
        dataset.mkdir()
        positions = {}
        for number, way in enumerate(WAYS):
            (dataset / f"{number}").mkdir()
            WAYS[way](dataset / f"{number}/file", CONTENT[number:])
            positions[way] = recorded.position()
        mount.end(signal.SIGKILL)

    for number, way in enumerate(WAYS):
        with recorded.after_power_cut(positions[way], 0.0, random.Random()) as left:
            (path,) = left.glob(f"staging/*/*/*/tree/{number}/file")
            assert path.read_bytes() == CONTENT[number:], way
