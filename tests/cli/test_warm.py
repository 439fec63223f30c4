"""warm and pin: told beforehand, refused beforehand, whole afterwards; on a real server."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import UUID, DserverURI
from dserverfs.cli.fetching import Amount, refusal, refusal_to_pin
from dserverfs.cli.item_globs import ItemGlobs
from dserverfs.cli.main import main
from dserverfs.reading.cache.maintenance import Room
from tests.support.accounts import Account
from tests.support.commands_here import CommandsHere
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import client_of, mounted, publish
from tests.support.quirky_server import BASE_URI, TOKEN, quirky_server
from tests.support.servers import ServerHandle, new_uuid

pytest_plugins = ["tests.support.here_fixtures"]

SIZES = {"raw/a.csv": 3000, "raw/b.txt": 4000, "deep/er/c.csv": 2 * BLOCK_SIZE, "empty": 0}
MIB = 1024**2


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    items = {relpath: content_of(f"to warm {relpath}", size) for relpath, size in SIZES.items()}
    local = make_dataset(tmp_path_factory.mktemp("local"), "to-warm", items)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("DSERVER_TOKEN", token)


def names_of(lines: Sequence[str]) -> set[str]:
    """Return the relpaths that a dry run lists."""
    return {line.split()[-1] for line in lines[:-1]}


# Told and refused


def test_dry_run_lists_what_is_missing_and_fetches_nothing(here: CommandsHere, uri: str) -> None:
    before = here.run("warm", "--dry-run", uri)
    again = here.run("warm", "-n", uri)
    here.run("warm", uri, "--include", "raw/")
    after = here.run("warm", "-n", uri)

    assert names_of(before) == {*SIZES} - {"empty"}
    assert before[-1] == "would be fetched: 3 of 4 items, 2.0 MiB of 2.0 MiB"
    assert again == before
    assert names_of(after) == {"deep/er/c.csv"}


@pytest.mark.parametrize("command", ["warm", "pin"])
def test_what_cannot_fit_is_refused_and_not_begun(
    here: CommandsHere, uri: str, command: str
) -> None:
    assert "2.0 MiB" in here.refusal(command, uri, "--cache-size", "1M")

    (facts,) = [json.loads("".join(here.run("cache", "info", "--json")))]
    assert (facts["blocks"], facts["limit_in_bytes"], facts["pinned_in_bytes"]) == (0, MIB, 0)


@pytest.mark.parametrize(
    ("wanted", "room", "fits", "can_be_pinned"),
    [
        # size, to fetch, pinned among them; limit, held, pinned in all, free on the disk
        ((80, 80, 0), (100, 0, 0, 1000), True, True),
        ((81, 81, 0), (100, 0, 0, 1000), True, False),
        ((100, 10, 0), (100, 100, 0, 1000), True, False),
        ((101, 10, 0), (100, 90, 0, 1000), False, False),
        ((101, 0, 0), (100, 100, 0, 1000), True, False),
        ((50, 50, 0), (100, 60, 60, 1000), False, False),
        ((60, 10, 60), (100, 60, 60, 1000), True, True),
        ((40, 40, 0), (100, 90, 0, 0), True, True),
        ((40, 40, 0), (100, 30, 0, 9), False, False),
        ((40, 40, 0), (100, 30, 0, -5), False, False),
        ((40, 40, 0), (100, 50, 40, 29), False, False),
        ((1, 1, 0), (0, 50, 0, 1000), False, False),
    ],
)
def test_what_fits_is_what_limit_pins_and_disk_have_room_for(
    wanted: tuple[int, int, int], room: tuple[int, int, int, int], fits: bool, can_be_pinned: bool
) -> None:
    size, to_fetch, pinned = wanted
    amount = Amount(1, size, 1, size, to_fetch, pinned)

    assert (refusal(amount, Room(*room)) is None) is fits
    assert (refusal_to_pin(amount, Room(*room)) is None) is can_be_pinned


def test_limit_that_one_has_set_stays_for_those_that_set_none(
    here: CommandsHere, uri: str, token: str
) -> None:
    here.run("warm", uri, "--cache-size", "10M")
    here.run("warm", uri)
    with client_of(uri, token, here.cache):
        pass  # as dtool's commands have one

    facts = json.loads("".join(here.run("cache", "info", "--json")))
    assert facts["limit_in_bytes"] == 10 * MIB


# What is meant


@pytest.mark.parametrize(
    ("pattern", "relpath", "is_meant"),
    [
        ("*.csv", "a.csv", True),
        ("*.csv", "deep/er/a.csv", True),
        ("*.csv", "a.csv/b", False),
        ("a.csv", "deep/a.csv", True),
        ("raw/*.csv", "raw/a.csv", True),
        ("raw/*.csv", "deep/raw/a.csv", False),
        ("raw/*.csv", "raw/er/a.csv", False),
        ("/raw/a.csv", "raw/a.csv", True),
        ("raw/", "raw/er/a", True),
        ("raw/", "raw", False),
        ("raw/**/a", "raw/a", True),
        ("raw/**/a", "raw/1/2/a", True),
        ("**", "any/thing", True),
        ("?", "ab", False),
        ("a?c", "a/c", False),
        ("[ab]c", "bc", True),
        ("[!ab]c", "bc", False),
        ("a[!b]c", "a/c", False),
        ("[]]", "]", True),
        ("[", "[", True),
        ("a.c", "abc", False),
        ("*", "new\nline", True),
        ("", "a", False),
    ],
)
def test_pattern_means(pattern: str, relpath: str, is_meant: bool) -> None:
    assert ItemGlobs([pattern]).has(relpath) is is_meant


def test_include_list_and_plan_of_nothing_are_told_in_one_line(
    here: CommandsHere, uri: str, tmp_path: Path
) -> None:
    assert "[z-a]: is no pattern" in here.refusal("warm", uri, "--include", "[z-a]")
    assert "cannot be read" in here.refusal("warm", "--from", tmp_path / "missing")
    (tmp_path / "empty").write_text("\n \n")
    assert here.refusal("warm", "--from", tmp_path / "empty").endswith("a URI dserver://...")


@pytest.mark.parametrize("command", [["warm"], ["warm", "-n"], ["pin"]])
def test_pattern_of_no_item_is_a_failure(
    here: CommandsHere, uri: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The others count: a script that asks for raw data is told that there is none."""
    words = [*command, uri, "--include", "a.csv", "--include", "*.tif"]

    assert main(words) == 1

    assert capsys.readouterr().err.endswith("--include *.tif: no item has such a path\n")
    if command != ["warm", "-n"]:
        assert "raw/a.csv" not in names_of(here.run("warm", "-n", uri))


def test_list_names_targets_a_line_each(
    here: CommandsHere, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list").write_text(f"{uri}\n\n{uri}\n")
    from_file = here.run("warm", "-n", "--from", tmp_path / "list", "--include", "*.csv")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(uri.encode())))
    from_input = here.run("warm", "-n", "--from", "-", "--include", "*.csv")

    assert names_of(from_file) == {"raw/a.csv", "deep/er/c.csv"}
    assert from_input == from_file


def test_all_that_warmed_datasets_show_is_known_without_their_server(
    here: CommandsHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSERVER_TOKEN", TOKEN)
    uuids = [new_uuid() for _ in range(4)]
    with quirky_server() as quirky:
        base = f"{quirky.url.replace('http', 'dserver')}/{BASE_URI.replace('://', '/')}"
        for uuid in uuids:
            quirky.add(uuid, {"item": b"item"}, name=f"warmed-{uuid}")
        here.run("warm", *(f"{base}/{uuid}" for uuid in uuids))
        listings = quirky.asked("^POST /uris")

    assert listings == 1, "of a base URI, not of each dataset"
    with client_of(base, TOKEN, here.cache) as client:
        for uuid in uuids:
            dataset = client.catalogue.dataset(DserverURI.parse(f"{base}/{uuid}"))
            client.catalogue.keep(dataset)
        listed = client.catalogue.listed(BASE_URI)

    assert {each.uuid for each in listed} == {UUID(uuid) for uuid in uuids}


# pin


def test_pinned_dataset_stays_when_the_cache_is_cleared_until_it_is_unpinned(
    here: CommandsHere, uri: str
) -> None:
    pinned = here.run("pin", uri)
    listed = here.run("pin", "--list")
    cleared = here.run("cache", "clear")
    here.run("warm", uri)
    unpinned = here.run("unpin", uri)
    cleared_again = here.run("cache", "clear")

    assert pinned[-1] == "4 items, 2.0 MiB: in the cache"
    assert listed == [f"   2.0 MiB  to-warm: 4 items, all here: {uri}"]
    assert cleared[0].startswith("forgot 0 blocks of 0 items, ")
    assert cleared[1].startswith("kept, as pinned: 3 items, 2.")
    assert "--pinned" in cleared[1]
    assert unpinned == ["unpinned: 4 items"]
    assert cleared_again[0].startswith("forgot 4 blocks of 3 items, ")
    assert here.run("pin", "--list") == ["nothing is pinned"]
    assert "nothing of that is pinned" in here.refusal("unpin", uri)
    here.run("pin", uri, "--include", "*.txt")
    assert len(here.run("cache", "clear", "--pinned")) == 1, "nothing stays"
    assert here.run("pin", "--list") == ["nothing is pinned"]


@pytest.mark.parametrize("of", ["server", "base", "uuid", "all"])
def test_unpinning_names_a_dataset_or_what_has_it_and_needs_no_server(
    here: CommandsHere, uri: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.run("pin", uri, "--include", "*.csv")
    monkeypatch.delenv("DSERVER_TOKEN")
    server = "/".join(uri.split("/")[:3])
    named = {
        "server": server,
        "base": uri.rpartition("/")[0],
        "uuid": f"{server}/{uri.rpartition('/')[2]}",
        "all": "--all",
    }

    assert "nothing" in here.refusal("unpin", f"{server}/s3/other")
    assert "nothing" in here.refusal("unpin", f"{server}/{new_uuid()}")
    assert here.run("unpin", named[of]) == ["unpinned: 2 items"]


def test_path_in_a_mount_is_pinned_in_the_cache_of_that_mount(
    fuse: None, current_user: Account, here: CommandsHere, uri: str, token: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache-of-mount"
    with mounted(current_user, uri, token, "--cache-dir", str(cache)) as path:
        dry = here.run("pin", "-n", path, "--include", "*.csv")
        here.run("pin", path / "data/raw")
        (status,) = [json.loads("".join(here.run("status", "--json", path)))]
        item = json.loads("".join(here.run("status", "--json", path / "data/raw/a.csv")))
        shown = here.run("status", path)
        here.run("pin", path, "--include", "c.csv")
        listed = json.loads("".join(here.run("pin", "--list", "--json", "--cache-dir", cache)))
        unpinned = here.run("unpin", path / "data/raw")
        left = json.loads("".join(here.run("pin", "--list", "--json", "--cache-dir", cache)))

    assert {Path(name).name for name in names_of(dry)} == {"a.csv", "c.csv"}
    counted = status["cached"]
    # The beginning of the third item is read ahead, or not yet.
    assert counted.pop("size_in_bytes") in (7000, 7000 + BLOCK_SIZE)
    assert counted == {
        "items": 3,
        "of_items": 4,
        "of_size_in_bytes": sum(SIZES.values()),
        "pinned_items": 2,
    }
    assert item["cached"]["pinned_items"] == item["cached"]["of_items"] == 1
    (line,) = [line for line in shown if line.startswith("cached: ")]
    assert re.fullmatch(r"cached: 3 of 4 items, .* of 2\.0 MiB; 2 pinned", line)
    (pinned,) = listed
    assert (pinned["uri"], pinned["items"], pinned["items_here"]) == (uri, 3, 3)
    assert unpinned == ["unpinned: 2 items"]
    assert [each["items"] for each in left] == [1]
