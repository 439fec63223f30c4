"""Hosts of a site that read a dataset by its cache, through every door; counted at the store."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from dserverfs.base.model import DserverURI
from tests.support.accounts import Account
from tests.support.commands_here import CommandsHere
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.nginx import SiteCache, free_ports, site_cache
from tests.support.server_store import set_dtool_s3
from tests.support.servers import ServerHandle, new_uuid, running_server
from tests.support.signed_store import Asked, SignedStore, signed_store

pytest_plugins = ["tests.support.here_fixtures"]

MIB = 1024**2
SIZES = {"large.bin": 40 * MIB + 5, "other.bin": 23 * MIB, "empty": 0} | {
    f"small/{number:03}": 4096 for number in range(60)
}


class Site(NamedTuple):
    server: ServerHandle
    store: SignedStore
    cache: SiteCache
    uri: str
    digests: Mapping[str, str]

    def environment(self, host: Path) -> dict[str, str]:
        """Return the settings of a host with caches of its own."""
        return {
            "DSERVER_TOKEN": self.server.token,
            "DSERVER_SITE_CACHE": self.cache.url,
            "DSERVER_CACHE_DIR": str(host / "cache"),
            "DSERVER_STAGING_DIR": str(host / "staging"),
            "DTOOL_CACHE_DIRECTORY": str(host / "dtool"),
        }

    def taken(self) -> list[Asked]:
        """Return what was asked of the store for items."""
        data = f"/{self.uri.rpartition('/')[2]}/data/"
        return [each for each in self.store.take_asked() if data in each.path]


@pytest.fixture(scope="module")
def site(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A dserver whose signed URLs name a store by way of a front that counts, and a cache."""
    scratch = tmp_path_factory.mktemp("site")
    items = {relpath: content_of(f"site {relpath}", size) for relpath, size in SIZES.items()}
    local = make_dataset(scratch, "site", items)
    with signed_store(server) as store, pytest.MonkeyPatch.context() as patch:
        bucket = f"site-{new_uuid()[:8]}"
        store.s3.create_bucket(Bucket=bucket)
        set_dtool_s3(patch, dataclasses.replace(store.storage, bucket=bucket), scratch)
        with (
            running_server(scratch / "data", "--bucket", bucket) as dserver,
            site_cache(scratch / "nginx", [store.storage.endpoint]) as cache,
        ):
            (uri,) = publish(dserver.base_uri, dserver.token, scratch / "cache", local)
            store.take_asked()
            digests = {relpath: hashlib.md5(data).hexdigest() for relpath, data in items.items()}
            yield Site(dserver, store, cache, uri, digests)


@pytest.fixture(scope="module")
def kept(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """What the store was asked for when a first host read all of it by the cache."""
    command = [sys.executable, "-m", "dserverfs", "warm", site.uri]
    environment = {**os.environ, **site.environment(tmp_path_factory.mktemp("first"))}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site.taken()


def digests_below(directory: Path) -> dict[str, str]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    found = {str(p.relative_to(directory)): hashlib.md5(p.read_bytes()).hexdigest() for p in paths}
    return found


def rows(asked: list[Asked]) -> set[tuple[int, int]]:
    return {(each.status, each.length) for each in asked}


def test_second_host_takes_one_byte_a_request_from_the_store(
    site: Site, kept: list[Asked], current_user: Account, fuse: None, tmp_path: Path
) -> None:
    second = site.environment(tmp_path / "second")
    with mounted(current_user, site.uri, site.server.token, env=second) as mount:
        read = digests_below(mount / "data")
        by_second = site.taken()
        said = current_user.dserverfs("status", env=second).stdout

    assert read == site.digests
    assert sum(each.length for each in kept) >= sum(SIZES.values())
    assert rows(by_second) == {(206, 1)}
    near = re.search(rf"site cache: {site.cache.url}: had (\d+) of (\d+) answers", said)
    assert near is not None
    assert near[1] == near[2] == str(len(by_second))


PROGRAMS = {
    "fsspec": "import sys, hashlib, fsspec\n"
    "fs = fsspec.filesystem('dserver')\n"
    "for path in fs.find(sys.argv[1] + '/data'):\n"
    "    name = path.partition('/data/')[2]\n"
    "    print(hashlib.md5(fs.cat_file(path)).hexdigest(), name)\n",
    "broker": "import sys, hashlib, dtoolcore\n"
    "d = dtoolcore.DataSet.from_uri(sys.argv[1])\n"
    "for i in d.identifiers:\n"
    "    content = open(d.item_content_abspath(i), 'rb').read()\n"
    "    print(hashlib.md5(content).hexdigest(), d.item_properties(i)['relpath'])\n",
}


@pytest.mark.parametrize("program", [*PROGRAMS.values()], ids=[*PROGRAMS])
def test_programs_of_another_host_take_one_byte_a_request(
    site: Site, kept: list[Asked], tmp_path: Path, program: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, site.uri],
        env={**os.environ, **site.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1)[::-1] for line in done.stdout.splitlines())
    assert found == site.digests
    assert rows(site.taken()) == {(206, 1)}


def spoil(site: Site) -> None:
    """Change a byte of every slice that the cache has; its own check is of names only."""
    for path in site.cache.kept.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize("is_there", [True, False])
def test_doctor_tells_of_the_cache(
    site: Site, current_user: Account, tmp_path: Path, is_there: bool
) -> None:
    host = DserverURI.parse(site.uri).server
    settings = site.environment(tmp_path)
    if not is_there:
        settings["DSERVER_SITE_CACHE"] = f"http://127.0.0.1:{free_ports(1)[0]}"

    said = current_user.dserverfs("doctor", host, env=settings).stdout

    lines = [line for line in said.splitlines() if " site cache: " in line]
    assert [line.split()[0] for line in lines] == ["ok"] if is_there else ["warning", "warning"]
    if not is_there:
        assert "items come from the store itself: dserverfs help site_cache" in lines[0]
        assert "it cannot be connected to" in lines[1]


@pytest.mark.expects_log("fetched once more")
def test_wrong_bytes_of_the_cache_are_fetched_from_the_store(
    site: Site,
    kept: list[Asked],
    here: CommandsHere,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in site.environment(tmp_path / "host").items():
        monkeypatch.setenv(name, value)
    spoil(site)
    site.store.take_asked()

    here.run("warm", site.uri)  # which fails if an item is not the manifest's
    asked = len(site.cache.log())
    here.run("verify", site.uri)  # past the cache

    assert len(site.cache.log()) == asked
    assert sum(each.length for each in site.taken()) > 60 * SIZES["small/000"] + 2 * MIB
