"""What is in a directory, and a system call that Python does not have."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

from tests.accounts import Account

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100

_LIST = """
import hashlib, json, os, sys
root = sys.argv[1]
found = {}
for directory, _, names in os.walk(root, onerror=lambda error: sys.exit(str(error))):
    for name in names:
        path = os.path.join(directory, name)
        with open(path, "rb") as file:
            found[os.path.relpath(path, root)] = hashlib.md5(file.read()).hexdigest()
json.dump(found, sys.stdout)
"""


def md5_of_files(account: Account, directory: Path, *, timeout_s: float = 300) -> dict[str, str]:
    """Return the MD5 of every file below `directory` by its relative path, as `account` sees it."""
    done = account.run(account.python, "-c", _LIST, directory, timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def contents_of(root: str) -> dict[str, bytes]:
    """Return the content of every file below `root` by its relative path."""
    return {
        os.path.relpath(os.path.join(directory, name), root): Path(directory, name).read_bytes()
        for directory, _, files in os.walk(root)
        for name in files
    }


def renameat2(old: str, new: str, flags: int) -> None:
    """Rename with RENAME_NOREPLACE (1), RENAME_EXCHANGE (2), ...; raises OSError."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
