"""What is in a directory, looked at as the user who may."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.accounts import Account

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
