"""A frozen dataset is copied into a mount whose server has a dataset of that uuid already."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.model import identifier_of
from tests.support.accounts import Account
from tests.support.dtool_datasets import make_varied_dataset
from tests.support.mount_daemons import Remountable, remountable
from tests.support.mounts import publish
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import job, status, wait_until, wait_until_gone

COPY = 'cp -r "$1" "$2"'


@pytest.fixture(scope="module")
def mount(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> Iterator[Remountable]:
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as mount:
        mount.mount("--freeze-delay", "3600")
        yield mount


@pytest.fixture
def local(tmp_path: Path, server: ServerHandle, token: str) -> Path:
    """A dataset on the local disk that the server has as well."""
    directory = make_varied_dataset(tmp_path, f"again-{tmp_path.name[:40]}")
    publish(server.base_uri, token, tmp_path / "cache", directory)
    return directory


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def add_item(directory: Path) -> None:
    """Make another dataset of it, with the uuid that it has."""
    (directory / "data/more").write_bytes(b"more")
    item = {
        "relpath": "more",
        "size_in_bytes": 4,
        "hash": hashlib.md5(b"more").hexdigest(),
        "utc_timestamp": 1.5,
    }
    rewrite(
        directory / ".dtool/manifest.json",
        lambda manifest: manifest["items"].update({identifier_of("more"): item}),
    )


def test_same_dataset_is_put_away_and_said_to_be_there(
    mount: Remountable, local: Path, current_user: Account
) -> None:
    copy = mount.path / "copied"
    job(current_user, COPY, local, copy)
    directory = Path(status(current_user, copy)["directory"])

    done = current_user.dserverfs("freeze", copy)

    assert done.returncode == 0, done.stderr
    assert "the server had it already, with the same content" in done.stdout + done.stderr
    wait_until_gone(directory)
    uuid = json.loads((local / ".dtool/dtool").read_text())["uuid"]
    frozen = mount.path / ".uuid" / uuid
    assert (frozen / "README.yml").read_bytes() == (local / "README.yml").read_bytes()
    assert not [one for one in status(current_user)["staged"] if one["uuid"] == uuid]


def change_metadata(directory: Path) -> None:
    (directory / "README.yml").write_text("---\ndescription: another\n")
    metadata = directory / ".dtool"
    (metadata / "tags").mkdir(exist_ok=True)
    (metadata / "tags/one-more").touch()
    (metadata / "annotations").mkdir(exist_ok=True)
    (metadata / "annotations/mine.json").write_text("[1, 2]")
    for overlay in (metadata / "overlays").iterdir():
        overlay.unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_item, "is registered already, with other items"),
        (change_metadata, "not the same README.yml, tags, annotation mine, overlay "),
    ],
)
def test_another_one_stays_staged_and_in_sight_also_for_the_next_daemon(
    mount: Remountable,
    local: Path,
    current_user: Account,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    change(local)
    copy = mount.path / f"other-{change.__name__}"
    job(current_user, COPY, local, copy)

    refusal = current_user.dserverfs("freeze", copy).stderr

    assert reason in refusal
    assert len(refusal.splitlines()) == 1

    def require_shown() -> None:
        found = wait_until(current_user, copy, state="failed")
        assert reason in found["reason"]
        assert copy.name in os.listdir(mount.path)
        staged = status(current_user)["staged"]
        assert [one["name"] for one in staged if one["directory"] == found["directory"]]

    require_shown()
    mount.end(signal.SIGTERM)
    mount.mount("--freeze-delay", "3600")
    require_shown()

    job(current_user, 'echo more > "$1"', copy / "data/written")
    assert status(current_user, copy)["state"] == "open"
    directory = Path(status(current_user, copy)["directory"])
    assert current_user.dserverfs("discard", copy).returncode == 0
    assert not directory.exists()
    assert copy.name not in os.listdir(mount.path)


def test_another_one_without_its_metadata_becomes_a_new_dataset(
    mount: Remountable, local: Path, current_user: Account
) -> None:
    uuid = json.loads((local / ".dtool/dtool").read_text())["uuid"]
    add_item(local)
    copy = mount.path / "a-new-one"
    job(current_user, COPY, local, copy)
    assert current_user.dserverfs("freeze", copy).returncode != 0

    shutil.rmtree(copy / ".dtool")
    done = current_user.dserverfs("freeze", copy)

    assert done.returncode == 0, done.stderr
    assert uuid not in done.stdout
    assert (copy / "data/more").read_bytes() == b"more"
