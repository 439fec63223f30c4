"""Datasets in mounts whose files are rewritten, and what the server has of them then."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.accounts import Account
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, encoded
from tests.support.staged_datasets import status

BEFORE = "---\ndescription: before\n"
CONTENTS = {"hello.txt": b"hello\n", "sub/other.bin": b"x"}
DATASETS = 40


def run(dataset: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the dataset."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=dataset,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def uri_of(server: ServerHandle, dataset: Path) -> str:
    return f"{server.backend_uri}/{dataset.name}"


def readme_of(server: ServerHandle, dataset: Path) -> str:
    """Return the README that the server has."""
    readme: str = server.get(f"/readmes/{encoded(uri_of(server, dataset))}").json()["readme"]
    return readme


def wait_for(found: Callable[[], Any], wanted: Any) -> None:
    """Wait until the server has what was sent after close(2) had returned."""
    end_s = time.monotonic() + LATE_S
    while (now := found()) != wanted:
        assert time.monotonic() < end_s, f"{now!r} is not {wanted!r}"


def unsent(account: Account, path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = status(account, path).get("unsent", [])
    return found


def vim_saves(dataset: Path, content: bytes) -> None:
    """Make the system calls of vim 9 saving README.yml, with backupcopy=no."""
    readme, swap = dataset / "README.yml", dataset / ".README.yml.swp"
    swap_fd = os.open(swap, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    os.chmod(swap, 0o644)
    os.write(swap_fd, b"b0VIM" + bytes(4091))
    os.fsync(swap_fd)
    trial = os.open(dataset / "4913", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    os.fchown(trial, os.getuid(), os.getgid())
    os.close(trial)
    os.unlink(dataset / "4913")
    os.rename(readme, dataset / "README.yml~")
    try:
        fd = os.open(readme, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, content)
            os.fsync(fd)
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
    except OSError:
        os.rename(dataset / "README.yml~", readme)
        raise
    else:
        os.unlink(dataset / "README.yml~")
    finally:
        os.close(swap_fd)
        os.unlink(swap)
