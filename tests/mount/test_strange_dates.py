"""Dates beyond what anybody means: kept in the manifest, shown as far as they can be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base import limits
from dserverfs.base.model import identifier_of, mtime_ns_of
from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle

# What a file of ext4 or xfs may have, and what dtool may have written.
OF_FILES = {"old": -1, "1905": -2_051_222_400, "2264": 9_300_000_000, "now": 1_700_000_000}
IN_MANIFESTS = {**OF_FILES, "1601": -11_644_473_600, "2286": 1e10, "9999": limits.LAST_DATE_S}


@pytest.fixture(scope="module")
def mount(fuse: None, server: ServerHandle, token: str, current_user: Account) -> Iterator[Path]:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as path:
        yield path


def timestamps(dataset: Path) -> dict[str, float]:
    """Return the dates that the manifest of a frozen dataset has, by relpath."""
    manifest = json.loads((dataset / ".dtool/manifest.json").read_bytes())
    return {item["relpath"]: item["utc_timestamp"] for item in manifest["items"].values()}


def test_file_of_any_date_can_be_frozen(
    mount: Path, current_user: Account, server: ServerHandle, token: str
) -> None:
    directory = mount / "files-of-any-date"
    directory.mkdir()
    for name, moment_s in OF_FILES.items():
        (directory / name).write_text(name)
        os.utime(directory / name, (moment_s, moment_s))

    frozen = current_user.dserverfs("freeze", directory)

    assert frozen.returncode == 0, frozen.stderr
    with mounted(current_user, server.base_uri, token) as fresh:
        dataset = fresh / directory.name
        assert timestamps(dataset) == OF_FILES
        for name, moment_s in OF_FILES.items():
            status = (dataset / "data" / name).stat()
            assert status.st_mtime_ns == mtime_ns_of(moment_s)
            assert (dataset / "data" / name).read_text() == name


def dated(parent: Path, name: str, dates: dict[str, float]) -> Path:
    """Make a frozen dataset on the disk whose manifest has these dates."""
    dataset = make_dataset(parent, name, {key: key.encode() for key in dates})
    path = dataset / ".dtool/manifest.json"
    manifest = json.loads(path.read_bytes())
    for key, moment_s in dates.items():
        manifest["items"][identifier_of(key)]["utc_timestamp"] = moment_s
    path.write_text(json.dumps(manifest))
    return dataset


def test_frozen_dataset_keeps_dates_that_cannot_be_shown(
    mount: Path,
    current_user: Account,
    server: ServerHandle,
    token: str,
    tmp_path: Path,
) -> None:
    local = dated(tmp_path, "dates-of-dtool", IN_MANIFESTS)

    current_user.run("cp", "-r", local, mount, check=True)
    frozen = current_user.dserverfs("freeze", mount / local.name)

    assert frozen.returncode == 0, frozen.stderr
    with mounted(current_user, server.base_uri, token) as fresh:
        assert timestamps(fresh / local.name) == IN_MANIFESTS
        for name, moment_s in IN_MANIFESTS.items():
            path = fresh / local.name / "data" / name
            assert path.read_text() == name
            assert path.stat().st_mtime_ns == mtime_ns_of(moment_s)


def test_frozen_dataset_with_a_date_that_is_none_stays_staged(
    mount: Path, current_user: Account, tmp_path: Path
) -> None:
    local = dated(tmp_path, "no-date", {"a": 1e300})
    current_user.run("cp", "-r", local, mount, check=True)

    refused = current_user.dserverfs("freeze", mount / local.name)

    assert refused.returncode != 0
    assert "not a date between the years 1 and 9999" in refused.stderr
    assert (mount / local.name / "data/a").read_text() == "a"
    current_user.dserverfs("discard", mount / local.name)
