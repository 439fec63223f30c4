"""Mounts for tests, taken away whatever happens."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import DserverURI
from dserverfs.base.mountinfo import find_mounted
from dserverfs.client import Client
from dserverfs.settings import Settings
from tests.support.accounts import Account


def client_of(uri: str, token: str, cache_directory: Path) -> Client:
    """Return a client with a cache of its own; to be used as a context manager."""
    server = DserverURI.parse(uri).server
    return Client(server, Settings({"DSERVER_TOKEN": token}, {}), cache_directory=cache_directory)


def publish(base: str, token: str, cache_directory: Path, *directories: Path) -> list[str]:
    """Upload local datasets to `base`; return their dserver URIs."""
    base_uri = DserverURI.parse(base).base_uri
    assert base_uri is not None
    uris = []
    with client_of(base, token, cache_directory) as client:
        for directory in directories:
            dataset = LocalDataset.read(directory)
            client.uploader.upload(dataset, base_uri)
            uris.append(f"{base}/{dataset.admin_metadata['uuid']}")
    return uris


@contextlib.contextmanager
def mounted(
    account: Account, uri: str, token: str, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """Mount `uri` as `account` on a fresh directory in its home; yield the mount point."""
    number = sum(1 for _ in account.home.glob("mnt-*"))
    path = account.home / f"mnt-{number}"
    account.run("mkdir", path, check=True)
    done = account.dserverfs(
        "mount", uri, path, *options, env={"DSERVER_TOKEN": token, **(env or {})}
    )
    try:
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        yield path
    finally:
        if find_mounted(path) is not None:
            ended = account.dserverfs("umount", path)
            detach(path)
            left = "stays staged: " in ended.stderr or "not sent: " in ended.stderr
            assert ended.returncode == 0 or left, ended.stderr
    log = account.home / ".local/state/dserverfs" / f"mount{str(path).replace('/', '-')}.log"
    assert not log.exists() or "a fault of ours" not in log.read_text()


# The begin of a script in a mount namespace of its own: it holds no mounts of others, whose daemons
# would not end while it runs.
WITHOUT_MOUNTS = "umount -i -c -l -a -t fuse.dserverfs 2>/dev/null || true;"
# The same, but that it holds the mount at "$1".
WITHOUT_OTHER_MOUNTS = (
    "while read -r _ path type _; do"
    ' [ "$type" = fuse.dserverfs ] && [ "$path" != "$1" ] && umount -i -c -l "$path" 2>/dev/null;'
    " done </proc/self/mounts;"
)


def detach(path: Path) -> None:
    """Take a mount away, alive or dead."""
    subprocess.run(["fusermount3", "-uz", str(path)], capture_output=True, timeout=30, check=False)
