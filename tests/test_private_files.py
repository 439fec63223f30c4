"""What dserverfs keeps is its user's alone, whatever the umask is."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.mounts import mounted, publish
from tests.support.servers import ServerHandle

ITEMS = {"small": b"small", "large": bytes(2_000_000)}


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    local = make_dataset(tmp_path_factory.mktemp("local"), "private", ITEMS)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


def open_to_others(root: Path) -> list[str]:
    """Return what below `root` others than its owner may use, and what its owner may not."""
    found = []
    for directory, _, files in os.walk(root):
        for path in (Path(directory), *(Path(directory, name) for name in files)):
            status = path.lstat()
            wanted = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if stat.S_IMODE(status.st_mode) != wanted:
                found.append(f"{path.relative_to(root)} {stat.S_IMODE(status.st_mode):o}")
    return found


@pytest.mark.parametrize("umask", ["000", "077"])
def test_directories_are_0700_and_files_0600(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uri: str,
    tmp_path: Path,
    umask: str,
) -> None:
    careless = dataclasses.replace(
        current_user, _become=("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    )
    root = tmp_path / "of-ours"
    root.mkdir(mode=0o700)
    options = (
        *("--cache-dir", str(root / "some/cache"), "--staging-dir", str(root / "some/staging")),
        *("--freeze-delay", "manual", "--log-file", str(root / "some/logs/log")),
    )
    environment = {"XDG_STATE_HOME": str(root / "state")}

    with mounted(careless, server.base_uri, token, *options, env=environment) as base:
        for relpath, content in ITEMS.items():
            assert (base / "private/data" / relpath).read_bytes() == content
        os.listdir(base / "private/.dtool/tags")
        (base / "private/.dtool/manifest.json").read_bytes()
        (base / "new").mkdir(mode=0o700)
        descriptor = os.open(base / "new/file", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, b"new")
        os.close(descriptor)

        assert open_to_others(root) == []
        assert {path.name for path in root.iterdir()} == {"some", "state"}
        (base / "new/file").unlink()
        (base / "new").rmdir()
