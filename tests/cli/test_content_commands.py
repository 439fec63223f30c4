"""warm, verify and cache: on a real server, a real mount and real directories."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading.cache.block_files import files_in
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.quirky_server import BASE_URI, TOKEN, quirky_server, says
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle, new_uuid

SIZES = {"empty": 0, "small": 5000, "deep/large": 3 * BLOCK_SIZE + 99, "deep/other": 70_000}
ITEMS = len(SIZES)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = {relpath: content_of(f"commands {relpath}", size) for relpath, size in SIZES.items()}
    return make_dataset(tmp_path_factory.mktemp("local"), "commands", items)


@pytest.fixture(scope="module")
def uri(
    server: ServerHandle, token: str, local: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


@pytest.fixture
def damaged_uri(server: ServerHandle, token: str, tmp_path: Path) -> str:
    """A dataset of which the store has one item with a wrong byte, and lacks another."""
    items = {name: content_of(f"damaged {name}", 5000) for name in ("right", "wrong", "gone")}
    directory = make_dataset(tmp_path, "damaged-commands", items)
    uri = publish(server.base_uri, token, tmp_path / "publishing", directory)[0]
    stored = StoredItems.of(server, uri)
    stored.put("wrong", bytes(5000))
    stored.delete("gone")
    return uri


class Commands:
    """Commands of one user with a cache of its own."""

    def __init__(self, account: Account, token: str, cache: Path) -> None:
        self.account = account
        self.cache = cache
        self.environment = {"DSERVER_TOKEN": token, "DSERVER_CACHE_DIR": str(cache)}

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        done = self.account.dserverfs(*arguments, env=self.environment)
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout

    def refusal(self, *arguments: str | Path) -> str:
        """Return the one line that a command fails with."""
        done = self.account.dserverfs(*arguments, env=self.environment)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        return line

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("cache", "info", "--json"))
        return found


@pytest.fixture
def commands(current_user: Account, token: str, tmp_path: Path) -> Commands:
    return Commands(current_user, token, tmp_path / "commands-cache")


@pytest.mark.parametrize("words", [("cache", "info"), ("cache", "clear"), ("pin", "--list")])
def test_cache_that_is_not_there_is_told_and_not_made(
    commands: Commands, tmp_path: Path, words: tuple[str, ...]
) -> None:
    said = commands.refusal(*words, "--cache-dir", tmp_path)

    assert said == f"dserverfs: --cache-dir {tmp_path}: there is no cache in it"
    assert list(tmp_path.iterdir()) == []


# warm


def test_warmed_dataset_is_in_the_cache_whole_and_verified(commands: Commands, uri: str) -> None:
    said = commands.run("warm", uri)

    assert said.splitlines() == [
        f"to fetch: {ITEMS - 1} of {ITEMS} items, 3.1 MiB of 3.1 MiB",
        f"{ITEMS} items, 3.1 MiB: in the cache",
    ]
    facts = commands.facts()
    assert facts["items"] == facts["verified_items"] == ITEMS - 1  # the empty one has no block
    assert facts["blocks"] == 6


def test_warmed_dataset_is_read_without_its_objects(
    fuse: None, commands: Commands, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    items = {name: content_of(f"to go {name}", 2 * BLOCK_SIZE) for name in ("one", "two")}
    directory = make_dataset(tmp_path, "to-go", items)
    uri = publish(server.base_uri, token, tmp_path / "publishing", directory)[0]
    commands.run("warm", uri)
    for name in items:
        StoredItems.of(server, uri).delete(name)

    with mounted(commands.account, uri, token, "--cache-dir", str(commands.cache)) as path:
        for name, content in items.items():
            assert (path / "data" / name).read_bytes() == content


def test_path_in_a_mount_warms_the_cache_of_that_mount(
    fuse: None, commands: Commands, uri: str, token: str
) -> None:
    with mounted(commands.account, uri, token, "--cache-dir", str(commands.cache)) as path:
        said = commands.run("warm", path / "data/deep", path / "data/small")

    assert said.splitlines()[-1].startswith("3 items, ")
    assert commands.facts()["verified_items"] == 3


def test_item_that_cannot_be_warmed_is_named(commands: Commands, damaged_uri: str) -> None:
    _, *bad, last = commands.run("warm", damaged_uri, status=1).splitlines()

    assert sorted(line.split(": ")[1].split(" ")[1] for line in bad) == ["gone", "wrong"]
    assert last == "2 of 3 items could not be read"


def test_what_the_cache_has_no_room_for_is_not_said_to_be_in_it(
    fuse: None, commands: Commands, uri: str, token: str
) -> None:
    options = ("--cache-dir", str(commands.cache), "--cache-size", "1M")
    with mounted(commands.account, uri, token, *options) as path:
        by_path = commands.refusal("warm", path / "data")
    # No file over 200 KiB: the cache takes the small items, and not all blocks of the large one.
    limited = 'ulimit -f 400; exec "$@"'
    command = commands.account.dserverfs_command("warm", uri, "--cache-size", "1G")
    by_uri = commands.account.run("bash", "-c", limited, "bash", *command, env=commands.environment)

    assert "3.1 MiB do not fit: the cache holds at most 1.0 MiB" in by_path
    assert by_uri.returncode == 1
    assert re.match(rf"not in the cache: [1-3] of {ITEMS} items;", by_uri.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["warm", "verify"])
def test_directory_that_cannot_be_listed_is_a_failure(
    fuse: None, commands: Commands, token: str, command: str
) -> None:
    with quirky_server() as quirky:
        quirky.add(new_uuid(), {"item": b"item"}, name="listed")
        quirky.broken["/manifests/"] = says(404)
        base = f"{quirky.url.replace('http', 'dserver')}/{BASE_URI.replace('://', '/')}"
        with mounted(commands.account, base, TOKEN) as path:
            said = commands.run(command, path / "listed/.dtool", status=1)

    assert "0 items" not in said


def test_path_outside_every_mount_is_refused(commands: Commands, local: Path) -> None:
    assert commands.refusal("warm", local).endswith(f"{local}: is not in a mount of dserverfs")


# verify


def test_dataset_that_is_right_passes(
    fuse: None, commands: Commands, uri: str, local: Path, token: str
) -> None:
    right = f"{ITEMS} items, 3.1 MiB: as the manifest says\n"

    assert commands.run("verify", uri) == right
    assert commands.run("verify", local) == right
    with mounted(commands.account, uri, token, "--cache-dir", str(commands.cache)) as path:
        assert commands.run("verify", path) == right
        assert commands.run("verify", path / "data/deep").startswith("2 items, ")
        assert commands.run("verify", path / "data/small").startswith("1 item, ")


def test_damage_in_the_store_is_found_and_named(commands: Commands, damaged_uri: str) -> None:
    said = commands.run("verify", damaged_uri, status=1).splitlines()

    assert len(said) == 3
    assert any(" wrong: has hash " in line for line in said)
    assert any(" gone: " in line and "404" in line for line in said)
    assert said[-1] == "2 of 3 items are not as the manifest says"


def test_damage_in_the_store_is_found_though_the_cache_is_right(
    commands: Commands, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    directory = make_dataset(tmp_path, "hidden", {"item": content_of("hidden", 5000)})
    uri = publish(server.base_uri, token, tmp_path / "publishing", directory)[0]
    commands.run("warm", uri)
    StoredItems.of(server, uri).put("item", bytes(5000))

    said = commands.run("verify", uri, status=1).splitlines()

    assert len(said) == 2
    assert said[0].startswith(f"bad: {uri} item: has hash ")


def test_base_uri_names_all_its_datasets(
    commands: Commands, server: ServerHandle, token: str, uri: str, damaged_uri: str
) -> None:
    said = commands.run("verify", server.base_uri, status=1)

    assert f"{damaged_uri} wrong" in said
    assert f"{uri} " not in said


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add"])
def test_damage_of_a_local_dataset_is_found_and_named(
    commands: Commands, local: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(local, copy)
    item = copy / "data/deep/large"
    content = bytearray(item.read_bytes())
    if damage == "flip":
        content[BLOCK_SIZE + 7] ^= 1
        item.write_bytes(content)
    elif damage == "cut":
        os.truncate(item, 10)
    elif damage == "remove":
        item.unlink()
    else:
        item = copy / "data/deep/stray"
        item.touch()

    said = commands.run("verify", copy, status=1).splitlines()

    assert len(said) == 2
    assert said[0].startswith(f"bad: {copy} {item.relative_to(copy / 'data')}: ")


@pytest.mark.parametrize("path", ["README.yml", ".dtool", ".dtool/manifest.json"])
def test_what_is_no_item_is_not_said_to_be_as_in_the_manifest(
    commands: Commands, tmp_path: Path, path: str
) -> None:
    copy = make_dataset(tmp_path, "no-item", {"item": b"content"})

    said = commands.refusal("verify", copy / path)

    assert said.endswith(f"{path}: is no item: the items of its dataset are below {copy / 'data'}")
    assert commands.run("verify", copy / "data") == commands.run("verify", copy)


def test_directory_without_a_dataset_is_refused(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()

    said = commands.refusal("verify", tmp_path / "nothing")

    assert said.endswith("nothing: there is no dataset at, above or below it")


# cache


def test_cache_that_is_empty(commands: Commands) -> None:
    facts = commands.facts()

    assert facts["blocks"] == facts["items"] == facts["verified_items"] == 0
    assert facts["directory"] == str(commands.cache / "blocks")
    assert facts["limit_in_bytes"] > 0


def test_cache_is_cleared_under_a_mount_that_goes_on(
    fuse: None, commands: Commands, uri: str, token: str
) -> None:
    content = content_of("commands deep/large", SIZES["deep/large"])
    with mounted(commands.account, uri, token, "--cache-dir", str(commands.cache)) as path:
        item = path / "data/deep/large"
        assert item.read_bytes() == content

        assert commands.run("cache", "clear").startswith("forgot 4 blocks of 1 item, ")

        assert commands.facts()["blocks"] == 0
        assert commands.run("verify", path).startswith(f"{ITEMS} items, ")
        assert (path / ".dtool/manifest.json").read_bytes()


def test_cache_verify_finds_what_is_damaged_and_drops_it(commands: Commands, uri: str) -> None:
    commands.run("warm", uri)
    assert json.loads(commands.run("cache", "verify", "--json"))["damaged"] == 0
    blocks = commands.cache / "blocks"
    first, second, *_ = sorted(files_in(blocks))
    content = bytearray((blocks / first).read_bytes())
    content[-1] ^= 1
    (blocks / first).write_bytes(content)
    (blocks / second).unlink()

    found = json.loads(commands.run("cache", "verify", "--json", status=1))

    assert (found["damaged"], found["missing"]) == (1, 1)
    assert commands.facts()["blocks"] == 4
    again = json.loads(commands.run("cache", "verify", "--json"))
    assert (again["blocks"], again["damaged"], again["missing"]) == (4, 0, 0)


def test_cache_corrupt_finds_all_damage_and_leaves_the_cache_of_mounts_alone(
    commands: Commands, uri: str
) -> None:
    commands.run("warm", uri)
    before = {path: path.stat().st_mtime_ns for path in commands.cache.rglob("*.blk")}
    assert before

    said = commands.run("cache", "corrupt", uri, "--seed", "1", "--rounds", "3")

    assert said.startswith(f"seed 1: 3 rounds on {ITEMS} items, 3.1 MiB; damaged ")
    assert said.endswith("nothing wrong was read, and the cache is in use again\n")
    assert {path: path.stat().st_mtime_ns for path in commands.cache.rglob("*.blk")} == before
    assert sorted(path.name for path in commands.cache.iterdir()) == ["blocks", "manifests"]
