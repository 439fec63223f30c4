"""Datasets no upload would let in: each bad entry is refused alone, and nothing gets outside."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base import limits
from dserverfs.base.model import Identifier, identifier_of
from tests.support.accounts import Account
from tests.support.dtool_commands import dtool_of
from tests.support.hostile_datasets import entry, register
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle

HOSTILE = ["/etc/passwd", "../../up", "a/../b", "", "a//b", "x" * 256, "file/below", "d/" * 500]
STRANGE: dict[str, dict[str, Any]] = {
    # As it is shown: what it is below, by os.stat.
    "largest": {"size_in_bytes": limits.MAX_SIZE_BYTES},
    "second largest": {"size_in_bytes": limits.MAX_SIZE_BYTES - 1},
    "before 1970": {"utc_timestamp": -1},
    "1601": {"utc_timestamp": -11_644_473_600},
    "2264": {"utc_timestamp": 9_300_000_000},
    "2286": {"utc_timestamp": 1e10},
    ".refused-x": {},
    f".refused-{identifier_of('size')}": {},
}
WRONG: dict[str, dict[str, Any]] = {
    "size": {"size_in_bytes": 10**30},
    "negative": {"size_in_bytes": -1},
    "float": {"size_in_bytes": 1.0},
    "nan": {"utc_timestamp": math.nan},
    "infinite": {"utc_timestamp": math.inf},
    "late": {"utc_timestamp": 1e300},
    "hash": {"hash": "\ud800"},
}


def items(entries: dict[str, dict[str, Any]]) -> dict[Identifier, Any]:
    return {identifier_of(name): entry(name, **others) for name, others in entries.items()}


@pytest.fixture(scope="module")
def hostile(server: ServerHandle) -> str:
    """A dataset whose relpaths lead elsewhere."""
    return register(
        server, "hostile", items({relpath: {} for relpath in [*HOSTILE, "file", "good"]})
    )


@pytest.fixture(scope="module")
def strange(server: ServerHandle) -> str:
    """A dataset with items at the edge of what is accepted, and some beyond it."""
    return register(server, "strange", items({**STRANGE, **WRONG}))


@pytest.fixture(scope="module")
def mount(
    fuse: None, server: ServerHandle, token: str, hostile: str, strange: str, current_user: Account
) -> Any:
    with mounted(current_user, server.base_uri, token) as path:
        yield path


def test_hostile_relpaths_are_shown_as_refused_and_make_a_copy_fail(
    mount: Path, current_user: Account
) -> None:
    data = mount / "hostile/data"

    names = {f".refused-{identifier_of(relpath)}" for relpath in HOSTILE}

    assert set(os.listdir(data)) == {"file", "good", *names}
    for name in names:
        assert (data / name).stat().st_mode & 0o777 == 0o444
    copy = current_user.run("cp", data / f".refused-{identifier_of('../../up')}", "refused-copy")
    assert copy.returncode != 0
    assert os.strerror(errno.EIO) in copy.stderr
    assert (data / "good").read_bytes() == b""


def test_manifest_that_leads_outside_is_not_handed_out(mount: Path) -> None:
    manifest = mount / "hostile/.dtool/manifest.json"
    assert manifest.stat().st_size > 0

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        manifest.read_bytes()


def test_refused_items_are_bad_to_a_check(hostile: str, token: str, current_user: Account) -> None:
    done = current_user.dserverfs("verify", hostile, env={"DSERVER_TOKEN": token})

    assert done.returncode == 1
    bad = [line for line in done.stdout.splitlines() if "is refused" in line]
    assert len(bad) == len(HOSTILE)
    assert all(any(identifier_of(relpath) in line for line in bad) for relpath in HOSTILE)


def test_dtool_copies_nothing_outside(
    mount: Path, hostile: str, token: str, tmp_path: Path
) -> None:
    dtool = dtool_of(tmp_path, token)
    destination = tmp_path / "a/b/c"
    destination.mkdir(parents=True)

    through_mount = dtool.run("cp", mount / "hostile", destination)
    through_broker = dtool.refusal("cp", hostile, destination)

    assert through_mount.returncode != 0
    assert "must not have" in through_broker
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not found & {"up", "passwd", "b", "file", "good"}


def test_items_at_the_edge_are_shown_and_those_beyond_it_refused_alone(mount: Path) -> None:
    data = mount / "strange/data"

    shown = {name: (data / name).stat() for name in STRANGE}

    assert shown["largest"].st_size == limits.MAX_SIZE_BYTES
    assert shown["before 1970"].st_mtime_ns == -1_000_000_000
    assert shown["1601"].st_mtime_ns == limits.FIRST_SHOWN_NS
    assert shown["2264"].st_mtime_ns == shown["2286"].st_mtime_ns == limits.LAST_SHOWN_NS
    assert (data / f".refused-{identifier_of('size')}").read_bytes() == b""
    refused = set(os.listdir(data)) - set(STRANGE)
    # The name that one of them would have is an item's.
    assert f".refused-{identifier_of('size')}~" in refused
    assert len(refused) == len(WRONG)
    for name in refused:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (data / name).read_bytes()


def test_manifest_keeps_what_is_strange_as_it_is(mount: Path) -> None:
    manifest = json.loads((mount / "strange/.dtool/manifest.json").read_bytes())

    assert manifest["items"][identifier_of("2286")]["utc_timestamp"] == 1e10
    assert manifest["items"][identifier_of("size")]["size_in_bytes"] == 10**30


def test_space_is_told_whatever_sizes_there_are(mount: Path) -> None:
    status = os.statvfs(mount)

    assert status.f_blocks >= status.f_bfree >= 0
