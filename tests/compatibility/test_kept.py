"""What released versions left on the disk is shown, carried on with, and finished."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compatibility import released
from tests.compatibility.keeping import (
    BEGUN,
    ITEMS,
    PASSWORD,
    PENDING,
    REFUSED,
    STAGED,
    USER,
)
from tests.support import accounts
from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle, begin, complete, put_items, running_server
from tests.support.staged_datasets import freeze, wait_until_gone
from tests.support.staged_states import staged_states

KEPT = "kept-dataset"
CARRIED_ON = ["was-sealed", "was-uploading", "was-completing", "was-frozen"]


class Upgraded(NamedTuple):
    """A user and a server whose program was replaced, and what was there before."""

    account: Account
    server: ServerHandle
    staging: Path

    def staged(self) -> dict[str, str]:
        """Return the state of each staged dataset by name, as users are told."""
        return {one["name"]: one["state"] for one in released.unfinished(self.account)[0]}

    def unsent(self) -> list[str]:
        return [change["path"] for change in released.unfinished(self.account)[1]]


@pytest.fixture(scope="module", params=released.VERSIONS)
def upgraded(
    fuse: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgraded]:
    directory = tmp_path_factory.mktemp("upgraded")
    kept = released.kept(request.param, directory)
    account = accounts.current(directory)
    shutil.copytree(kept / "home", account.home, dirs_exist_ok=True)
    with running_server(kept / "server") as server:
        released.move_to_port(account.home, int(server.url.rpartition(":")[2]))
        yield Upgraded(account, server, account.home / "staging")


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {relpath: hashlib.md5(content).hexdigest() for relpath, content in files.items()}


# The tests of one version go on from one another.


def test_everything_is_told_before_anything_is_done(upgraded: Upgraded) -> None:
    assert upgraded.staged() == {
        "was-open": "open",
        "was-sealed": "sealed",
        "was-uploading": "uploading",
        "was-completing": "uploading",
        "was-frozen": "frozen",
        "has-failed": "failed",
    }
    assert upgraded.unsent() == ["README.yml", ".dtool/annotations/refused.json"]


def test_token_is_good_and_the_password_gives_another(upgraded: Upgraded) -> None:
    account, host = upgraded.account, upgraded.server.base_uri.split("/")[2]

    kept = account.dserverfs("whoami", host)
    again = account.run(
        *(account.python, "-m", "dserverfs", "login", host),
        input=f"{PASSWORD}\n",
    )

    assert (kept.returncode, kept.stderr) == (0, "")
    assert USER in kept.stdout
    assert (again.returncode, again.stderr) == (0, "")


def test_upload_of_a_client_goes_on(upgraded: Upgraded) -> None:
    body = json.loads((upgraded.account.home / "begun.json").read_text())

    begun = begin(upgraded.server, body)
    put_items(begun, BEGUN)
    done = complete(upgraded.server, begun["uri"])

    assert done.status_code == 200, done.text


def test_all_is_read_beside_the_cache_of_an_earlier_version(upgraded: Upgraded) -> None:
    account, server = upgraded.account, upgraded.server
    away = account.home / "away"  # lest the staged datasets are carried on with

    with mounted(account, server.base_uri, "", "--staging-dir", str(away)) as path:
        found = md5_of_files(account, path / KEPT / "data")

    assert found == digests(ITEMS)


def test_what_was_under_way_is_finished(upgraded: Upgraded) -> None:
    account, server = upgraded.account, upgraded.server
    with mounted(account, server.base_uri, "") as path:
        assert (path / KEPT / "README.yml").read_text() == PENDING
        assert md5_of_files(account, path / "was-open") == digests(STAGED["was-open"])
        assert upgraded.staged()["was-open"] == "open"
        assert upgraded.staged()["has-failed"] == "failed"
        for directory, record in [*staged_states(upgraded.staging)]:
            if record["name"] in CARRIED_ON:
                wait_until_gone(directory)
        for name in ("was-open", "has-failed"):
            freeze(account, path / name)
        wait_for(lambda: not upgraded.unsent(), "all changes sent")

    assert released.unfinished(account) == ([], [])
    assert [*staged_states(upgraded.staging)] == []


def test_all_is_on_the_server_as_it_was_written(upgraded: Upgraded, tmp_path: Path) -> None:
    stranger = accounts.current(tmp_path)
    with mounted(stranger, upgraded.server.base_uri, upgraded.server.token) as path:
        found = {name: md5_of_files(stranger, path / name / "data") for name in [*STAGED, KEPT]}
        assert found == {
            **{name: digests(files) for name, files in STAGED.items()},
            KEPT: digests(ITEMS),
        }
        assert md5_of_files(stranger, path / "begun/data") == digests(BEGUN)
        assert (path / KEPT / "README.yml").read_text() == PENDING
        assert (path / KEPT / ".dtool/annotations/refused.json").read_text() == REFUSED
        assert sorted(tag.name for tag in (path / KEPT / ".dtool/tags").iterdir()) == [
            "second",
            "testing",
        ]
