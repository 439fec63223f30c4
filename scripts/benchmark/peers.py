"""What is compared: dserverfs, other file systems, and the floors below them all.

Each with the defaults of its makers but for what is said here, started by the
command a user would type and returning when that does: a daemon stays.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from benchmark.lab import Lab, Published
from benchmark.mounts import Mount, Mounts, Place, Processes
from dserverfs.settings import TOKEN_FILE

OURS = "dserverfs"
NO_CHANNEL = "no-channel"
MOUNT_TIMEOUT_S = 60
_UNKNOWN = "version unknown"


class Missing(Exception):
    """The peer is not installed; the message says so."""


class Peer(Protocol):
    """A way to see the items of a dataset as files."""

    name: str
    is_floor: bool  # not a file system to compare with, but the least there could be
    is_reference: bool  # shown, but not compared with

    def version(self) -> str:
        """Return what is compared; raises Missing."""

    def mounted(self, lab: Lab, mounts: Mounts, dataset: Published) -> _Mounting:
        """Mount with an empty cache; the end of the block unmounts and removes the cache."""


_Mounting = contextlib.AbstractContextManager[Mount]


class FusePeer(abc.ABC):
    """A peer with a daemon."""

    name: str
    is_floor = False
    is_reference = False
    by_identifier = True
    items = ""  # where they are below the mount point

    @abc.abstractmethod
    def command(self, lab: Lab, dataset: Published, place: Place) -> list[str]:
        """Return what mounts and returns when the mount answers."""

    def environment(self, lab: Lab) -> dict[str, str]:
        """Return what the command needs beside the usual environment."""
        return {}

    @contextlib.contextmanager
    def mounted(self, lab: Lab, mounts: Mounts, dataset: Published) -> Iterator[Mount]:
        with mounts.place() as (place, processes):
            self.start(lab, place, self.command(lab, dataset, place))
            yield Mount(place.path / self.items, place.cache, self.by_identifier, processes)

    def start(self, lab: Lab, place: Place, command: Sequence[str]) -> None:
        """Run what mounts; raises RuntimeError if it does not."""
        with place.log.open("ab") as log:
            done = subprocess.run(
                command,
                env={**place.environment, **self.environment(lab)},
                stdin=subprocess.DEVNULL,
                # Not a pipe: the daemon would hold it open.
                stdout=log,
                stderr=log,
                timeout=MOUNT_TIMEOUT_S,
                check=False,
            )
        if done.returncode != 0 or not os.path.ismount(place.path):
            said = place.log.read_text(errors="replace").strip()
            raise RuntimeError(f"{self.name} did not mount: {said[-500:]}")


class Dserverfs(FusePeer):
    """Of this checkout, one dataset mounted."""

    name = OURS
    by_identifier = False
    items = "data"

    def __init__(self, *options: str) -> None:
        self._options = options  # of its mount command

    def unverified(self) -> Dserverfs:
        """Return the same, comparing nothing with the manifest."""
        return type(self)(*self._options, "--verify", "off")

    def version(self) -> str:
        return _first_line([sys.executable, "-m", "dserverfs", "--version"])

    def command(self, lab: Lab, dataset: Published, place: Place) -> list[str]:
        return self.command_for(dataset.uri, place)

    def command_for(self, uri: str, place: Place) -> list[str]:
        """Return what mounts any dserver URI."""
        return [
            *(sys.executable, "-m", "dserverfs", "mount", uri, str(place.path)),
            *("--cache-dir", str(place.cache), "--read-only", *self._options),
        ]

    def environment(self, lab: Lab) -> dict[str, str]:
        return {TOKEN_FILE: str(lab.token_file)}


class WithoutChannel(Dserverfs):
    """The same without a channel, which is shown beside it."""

    name = NO_CHANNEL
    is_reference = True

    def command_for(self, uri: str, place: Place) -> list[str]:
        return [*super().command_for(uri, place), "--channel", "off"]


class Rclone(FusePeer):
    """With the disk cache its manual recommends for reading, and its parallel streams on."""

    name = "rclone"

    def program(self) -> str:
        """Return its path; raises Missing."""
        return _program("rclone")

    def version(self) -> str:
        return _first_line([_program("rclone"), "version"])

    def command(self, lab: Lab, dataset: Published, place: Place) -> list[str]:
        return [
            *(_program("rclone"), "mount", "--daemon", "--read-only", "--config", ""),
            *("--cache-dir", str(place.cache), "--vfs-cache-mode", "full"),
            *("--vfs-read-chunk-streams", "4"),
            f"store:{lab.storage.bucket}/{dataset.keys.items}",
            str(place.path),
        ]

    def environment(self, lab: Lab) -> dict[str, str]:
        return {
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_STORE_ENDPOINT": lab.storage.endpoint,
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": lab.storage.access_key,
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": lab.storage.secret_key,
        }


class S3fs(FusePeer):
    """With its disk cache."""

    name = "s3fs"

    def version(self) -> str:
        line = _first_line([_program("s3fs"), "--version"])
        found = re.search(r"V(\d[\d.]*)", line)
        return f"s3fs {found[1]}" if found else f"s3fs, {_UNKNOWN}"

    def command(self, lab: Lab, dataset: Published, place: Place) -> list[str]:
        # Objects that s3fs did not write have mode 0 unless told otherwise.
        prefix = f":/{dataset.keys.items.rstrip('/')}"
        return self.command_for(lab, prefix, place, "ro,umask=0022")

    def command_for(self, lab: Lab, prefix: str, place: Place, options: str) -> list[str]:
        """Return what mounts the bucket, or `:/PREFIX` of it."""
        passwords = place.cache.with_name("passwd-s3fs")
        passwords.touch(mode=0o600)
        passwords.write_text(f"{lab.storage.access_key}:{lab.storage.secret_key}\n")
        common = f"url={lab.storage.endpoint},use_path_request_style,passwd_file={passwords}"
        return [
            *(_program("s3fs"), f"{lab.storage.bucket}{prefix}", str(place.path)),
            *("-o", f"{common},use_cache={place.cache},{options}"),
        ]


class WeedMount(FusePeer):
    """The store's own client: beside S3, with access to all of the store."""

    name = "weed"
    is_reference = True

    def version(self) -> str:
        return " ".join(_first_line([_program("weed"), "version"]).split()[:4])

    def command(self, lab: Lab, dataset: Published, place: Place) -> list[str]:
        ports = json.loads((lab.store / "ports.json").read_text())
        return [
            *(_program("weed"), "-logtostderr", "-v=-1", "mount", "-readOnly"),
            f"-dir={place.path}",
            f"-filer=127.0.0.1:{ports['filer.port']}.{ports['filer.port.grpc']}",
            f"-filer.path=/buckets/{lab.storage.bucket}/{dataset.keys.items.rstrip('/')}",
            f"-cacheDir={place.cache}",
        ]

    def start(self, lab: Lab, place: Place, command: Sequence[str]) -> None:
        """Run it in the background: it does not leave its parent by itself."""
        with place.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=place.environment,
                cwd=lab.store / "config",  # where the keys of the store are
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end_s = time.monotonic() + MOUNT_TIMEOUT_S
        while not os.path.ismount(place.path):
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"weed did not mount: {place.log.read_text()[-500:]}")
            time.sleep(0.005)


class LocalFiles:
    """The same files on the local disk: no file system of ours can do less."""

    name = "local"
    is_floor = True
    is_reference = False

    def version(self) -> str:
        return "the local file system"

    @contextlib.contextmanager
    def mounted(self, lab: Lab, mounts: Mounts, dataset: Published) -> Iterator[Mount]:
        yield Mount(dataset.items, dataset.items, by_identifier=False, processes=Processes("none"))


def all_peers() -> Sequence[Peer]:
    return (Dserverfs(), WithoutChannel(), Rclone(), S3fs(), WeedMount(), LocalFiles())


def curl() -> str:
    """Return the path of curl, the floor of downloads; raises Missing."""
    return _program("curl")


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _first_line(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines()
    return lines[0] if lines else f"{command[0]}, {_UNKNOWN}"
