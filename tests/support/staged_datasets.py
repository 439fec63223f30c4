"""Staged datasets in mounts, as users see them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.support.accounts import Account
from tests.support.patience import LATE_S


def job(account: Account, script: str, *arguments: str | Path) -> None:
    """Run a shell script that has a session of its own: nobody is left of it when it returns.

    What the test itself, or a child of it, writes waits for the test to end.
    """
    account.run(*("setsid", "--wait", "sh", "-euc", script, "sh"), *arguments, check=True)


def leave(account: Account, dataset: Path, content: str = "content") -> None:
    """Have a job make a dataset with one file and end."""
    job(account, 'mkdir -p "$1"; printf %s "$2" > "$1/file"', dataset, content)


def status(account: Account, *path: Path) -> dict[str, Any]:
    """Return what `dserverfs status [PATH] --json` says."""
    done = account.dserverfs("status", *path, "--json")
    # Without a path it is about all mounts of the user: one of a test beside this one may be dead.
    assert done.returncode == 0 or (not path and done.returncode == 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wait_until(account: Account, path: Path, **facts: Any) -> dict[str, Any]:
    """Ask for the status of `path` until it is as in `facts`; return it."""
    end_s = time.monotonic() + LATE_S
    while True:
        found = status(account, path)
        if all(found.get(key) == value for key, value in facts.items()):
            return found
        assert time.monotonic() < end_s, f"still {found}"


def wait_until_gone(directory: Path) -> None:
    """Wait until a staged dataset's directory is deleted, as it is soon after the freeze."""
    end_s = time.monotonic() + LATE_S
    while directory.exists():
        assert time.monotonic() < end_s, f"{directory} is still there"


def freeze(account: Account, path: Path, *options: str) -> str:
    """Freeze with the command; return the dataset's URI."""
    done = account.dserverfs("freeze", path, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]
