"""`dserverfs status` without a path: all of this user that no server has, and what goes on."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.support.accounts import Account
from tests.support.mount_daemons import Remountable
from tests.support.mounts import mounted
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, upload
from tests.support.staged_datasets import status

pytest_plugins = ["tests.support.mount_fixtures"]


def of_mount(account: Account, path: Path) -> dict[str, Any]:
    (found,) = (one for one in status(account)["mounts"] if one["path"] == str(path))
    return dict(found)


def test_everything_staged_is_listed_wherever_and_when_it_was(
    mount: Remountable, current_user: Account
) -> None:
    mount.mount("--freeze-delay", "manual")
    (mount.path / "staged-elsewhere").mkdir()
    (mount.path / "staged-elsewhere/file").write_text("content")
    current_user.run("fusermount3", "-u", mount.path, check=True)  # leaves it staged

    listed = current_user.dserverfs("status").stdout
    facts = status(current_user)
    mount.staging.rename(mount.staging.with_name("moved"))
    gone = current_user.dserverfs("status").stdout
    again = current_user.dserverfs("status").stdout

    assert f" staged-elsewhere: 1 item, 7 B, in {mount.staging}/" in listed
    assert {"path": str(mount.staging), "there": True, "problem": None} in facts[
        "staging_directories"
    ]
    assert f"staging directory {mount.staging}: was deleted or renamed" in gone
    assert str(mount.staging) not in again
    shutil.rmtree(mount.staging.with_name("moved"))


def test_cache_and_transfers_of_a_mount_are_told(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    upload(server, {"x": b"x" * 200_000}, name="told-by-status")
    cache = tmp_path / "cache"
    options = ("--cache-dir", str(cache), "--cache-size", "1G")
    with mounted(current_user, server.base_uri, token, *options) as path:
        assert (path / "told-by-status/data/x").stat().st_size == 200_000
        (path / "told-by-status/data/x").read_bytes()
        reading = of_mount(current_user, path)["reading"]
        said = current_user.dserverfs("status").stdout

    assert reading["cache"]["directory"] == f"{cache}/blocks"
    assert reading["cache"]["limit_in_bytes"] == 1024**3
    assert reading["cache"]["size_in_bytes"] > 0
    assert f" of at most 1.0 GiB, in {cache}/blocks" in said


def test_watch_reports_again_and_again_until_it_is_interrupted(current_user: Account) -> None:
    command = (current_user.python, "-m", "dserverfs", "status", "--watch", "--json")
    with current_user.spawn(*command) as watching:
        assert watching.stdout is not None
        reports = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(LATE_S) == 0
        rest = watching.stdout.read()

    assert all({"mounts", "staged", "unsent", "logins"} <= report.keys() for report in reports)
    assert "Traceback" not in str(rest)
