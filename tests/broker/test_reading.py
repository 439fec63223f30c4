"""Every dtool command that reads, on a real server."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dserverfs
from dserverfs.base.model import identifier_of
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.layout import DatasetKeys
from tests.support.dtool_commands import Dtool, dtool_of
from tests.support.dtool_datasets import (
    README,
    SIZES,
    content_of,
    make_dataset,
    make_varied_dataset,
)
from tests.support.mounts import publish
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, upload
from tests.support.web_front import Front, front, make_certificates

NAME = "varied"
UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def base(server: ServerHandle) -> str:
    """A base URI of this module alone."""
    backend = server.add_base_uri(search=[server.username], register=[server.username])
    return f"{server.base_uri.rpartition('/')[0]}/{backend.removeprefix('s3://')}"


@pytest.fixture(scope="module")
def uri(server: ServerHandle, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a dataset with every kind of item."""
    scratch = tmp_path_factory.mktemp("varied")
    return publish(base, server.token, scratch / "cache", make_varied_dataset(scratch, NAME))[0]


@pytest.fixture
def dtool(server: ServerHandle, tmp_path: Path) -> Dtool:
    return dtool_of(tmp_path, server.token)


@pytest.fixture
def counting(server: ServerHandle) -> Iterator[Front]:
    with front(server.url) as passing:
        yield passing


def through(passing: Front, uri: str) -> str:
    """Return `uri` on the front in place of the server."""
    return uri.replace(uri.split("/")[2], passing.url.partition("://")[2])


def uuid_of(uri: str) -> str:
    return uri.rpartition("/")[2]


def test_datasets_are_listed(dtool: Dtool, base: str, uri: str) -> None:
    assert dtool.output("ls", base) == f"{NAME}\n  {uri}\n"
    assert dtool.output("ls", "-q", f"{base}/") == f"{uri}\n"
    assert "tester" in dtool.output("ls", "-v", base)


def test_items_are_listed(dtool: Dtool, uri: str) -> None:
    listed = dtool.output("ls", "-q", uri)

    assert listed == "".join(f"{relpath}\n" for relpath in sorted(SIZES))
    assert set(dtool.output("identifiers", uri).split()) == {identifier_of(r) for r in SIZES}


def test_what_a_dataset_is_can_be_asked(dtool: Dtool, uri: str) -> None:
    summary = json.loads(re.sub(r"\x1b\[[0-9;]*m", "", dtool.output("summary", "-f", "json", uri)))

    assert summary["name"] == NAME
    assert summary["creator_username"] == "tester"
    assert summary["number_of_items"] == len(SIZES)
    assert summary["size_in_bytes"] == sum(SIZES.values())
    assert dtool.output("name", uri) == f"{NAME}\n"
    assert dtool.output("uuid", uri) == f"{uuid_of(uri)}\n"
    assert dtool.output("status", uri) == "frozen\n"
    assert dtool.output("uri", uri) == f"{uri}\n"
    assert NAME in dtool.output("inventory", uri.rpartition("/")[0])


def test_metadata_is_shown(dtool: Dtool, uri: str) -> None:
    identifier = identifier_of("one-byte")
    is_odd = hash(identifier) % 2 == 1  # as make_dataset says

    assert dtool.output("readme", "show", uri) == f"{README}\n"
    assert dtool.output("readme", "validate", uri) == "All good!  :)\n"
    assert dtool.output("tag", "ls", uri) == "testing\n"
    assert dtool.output("annotation", "get", uri, "answer") == "{'text': 'ü', 'value': 42}\n"
    assert dtool.output("annotation", "ls", uri).startswith("answer\t")
    assert f"{identifier},{is_odd},one-byte" in dtool.output("overlays", "show", uri)
    assert dtool.output("item", "overlay", "odd", uri, identifier) == f"{is_odd}\n"
    assert dtool.output("item", "relpath", uri, identifier) == "one-byte\n"
    assert '"size_in_bytes"' in dtool.output("item", "properties", uri, identifier)
    assert dtool.refusal("annotation", "get", uri, "none") == "No annotation named: 'none'"


def test_dataset_is_named_by_its_uuid_alone_or_percent_encoded(dtool: Dtool, uri: str) -> None:
    server, uuid = uri.split("/")[2], uuid_of(uri)

    assert dtool.output("name", f"dserver://{server}/{uuid.upper()}/") == f"{NAME}\n"
    assert dtool.output("name", uri.replace("-", "%2D")) == f"{NAME}\n"


def test_item_is_fetched_once_and_keeps_its_extension(
    dtool: Dtool, counting: Front, uri: str
) -> None:
    relpath = "large/five-blocks.bin"
    command = ("item", "fetch", through(counting, uri), identifier_of(relpath))

    path = Path(dtool.output(*command).strip())
    first, counting.requests[:] = len(counting.requests), []
    again = dtool.output(*command).strip()

    assert path.read_bytes() == content_of(relpath, SIZES[relpath])
    assert path.suffix == ".bin"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert again == str(path)
    assert first <= 4
    assert len(counting.requests) == 1  # whether it is there, and for this user


def test_changed_file_of_an_item_is_fetched_anew(dtool: Dtool, uri: str) -> None:
    command = ("item", "fetch", uri, identifier_of("block.bin"))
    path = Path(dtool.output(*command).strip())
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"changed")

    dtool.output(*command)

    assert path.read_bytes() == content_of("block.bin", SIZES["block.bin"])


def test_cache_directory_of_dtool_is_honoured(dtool: Dtool, uri: str, tmp_path: Path) -> None:
    done = dtool.run("config", "cache", tmp_path / "by-config")
    if done.returncode == 2:  # dtool-config is not installed: what it would write
        settings = tmp_path / ".config/dtool/dtool.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"DTOOL_CACHE_DIRECTORY": str(tmp_path / "by-config")}))
    command = ("item", "fetch", uri, identifier_of("one-byte"))

    by_config = dtool.output(*command)
    by_variable = dtool.run(*command, env={"DTOOL_CACHE_DIRECTORY": str(tmp_path / "own")})

    assert by_config.startswith(str(tmp_path / "by-config"))
    assert by_variable.stdout.startswith(str(tmp_path / "own"))


def test_concurrent_fetches_of_an_item_do_not_disturb_each_other(dtool: Dtool, uri: str) -> None:
    relpath = "large/five-blocks.bin"
    command = ("item", "fetch", uri, identifier_of(relpath))

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: dtool.output(*command).strip(), range(4)))

    (path,) = paths
    assert Path(path).read_bytes() == content_of(relpath, SIZES[relpath])
    assert list(Path(path).parent.iterdir()) == [Path(path)]


def test_what_a_killed_fetch_left_is_deleted_after_a_day(dtool: Dtool, uri: str) -> None:
    command = ("item", "fetch", uri, identifier_of("one-byte"))
    path = Path(dtool.output(*command).strip())
    old, new = path.with_name(".partial.1-1.new"), path.with_name(".partial.2-1.new")
    for left in (old, new):
        left.touch()
    os.utime(old, (0, 0))

    dtool.output(*command)

    assert not old.exists()
    assert new.exists()


def test_copy_to_disk_is_whole(dtool: Dtool, uri: str, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()

    dtool.output("cp", uri, "copies")

    copy = tmp_path / "copies" / NAME
    for relpath, size in SIZES.items():
        assert (copy / "data" / relpath).read_bytes() == content_of(relpath, size)
    assert (copy / "README.yml").read_text() == README
    assert json.loads((copy / ".dtool/annotations/answer.json").read_text())["value"] == 42
    assert [path.name for path in (copy / ".dtool/tags").iterdir()] == ["testing"]
    assert "odd.json" in [path.name for path in (copy / ".dtool/overlays").iterdir()]
    admin = json.loads((copy / ".dtool/dtool").read_text())
    assert admin["uuid"] == uuid_of(uri)
    assert admin["creator_username"] == "tester"
    assert {"created_at", "frozen_at", "dtoolcore_version"} < admin.keys()
    assert admin["created_at"] < admin["frozen_at"]
    assert dtool.output("diff", "--full", uri, copy)
    assert dtool.output("diff", "--full", copy, uri)


def test_broken_copy_to_disk_is_resumed(dtool: Dtool, uri: str, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    dtool.output("cp", uri, "copies")
    copy = tmp_path / "copies" / NAME
    admin = json.loads((copy / ".dtool/dtool").read_text())
    (copy / ".dtool/dtool").write_text(json.dumps({**admin, "type": "protodataset"}))
    (copy / "data/block.bin").write_bytes(b"half")
    (copy / "data/names/-rf").unlink()

    dtool.output("cp", "--resume", uri, "copies")

    assert dtool.output("diff", "--full", uri, copy)


def test_verify_looks_at_what_is_stored(dtool: Dtool, uri: str) -> None:
    assert dtool.output("verify", uri) == "All good :)\n"
    assert dtool.output("verify", "--full", uri) == "All good :)\n"


def test_verify_names_what_the_store_lost_or_changed(
    server: ServerHandle, dtool: Dtool, base: str, tmp_path: Path
) -> None:
    relpaths = ["block.bin", "empty", "names/quote'\"s", "one-byte", "names/-rf"]
    directory = make_dataset(tmp_path, "hurt", {r: content_of(r, SIZES[r]) for r in relpaths})
    uri = publish(base, server.token, tmp_path / "cache", directory)[0]
    bucket, keys = base.rpartition("/")[2], DatasetKeys("", uuid_of(uri))
    store = ObjectStore(storage_of(server))
    (tmp_path / "copies").mkdir()
    dtool.output("cp", uri, "copies")  # so that caches hold all of it

    store.delete(bucket, [keys.item(identifier_of("block.bin"))])
    store.write(bucket, keys.item(identifier_of("one-byte")), b"?")
    store.write(bucket, keys.item(identifier_of("names/-rf")), b"longer than it was")

    quick = dtool.run("verify", uri)
    full = dtool.run("verify", "--full", uri)

    missing = f"Missing item: {identifier_of('block.bin')} block.bin"
    size = f"Altered item size: {identifier_of('names/-rf')} names/-rf"
    hashes = [
        f"Altered item hash: {identifier_of(relpath)} {relpath}"
        for relpath in ("names/-rf", "one-byte")
    ]
    assert (quick.returncode, full.returncode) == (1, 1)
    assert set(quick.stdout.splitlines()) == {missing, size}
    assert set(full.stdout.splitlines()) == {missing, size, *hashes}


def test_wrong_item_is_not_handed_out(
    server: ServerHandle, dtool: Dtool, base: str, tmp_path: Path
) -> None:
    directory = make_dataset(tmp_path, "wrong", {"a": b"right", "b": b"fine"})
    uri = publish(base, server.token, tmp_path / "cache", directory)[0]
    key = DatasetKeys("", uuid_of(uri)).item(identifier_of("a"))
    ObjectStore(storage_of(server)).write(base.rpartition("/")[2], key, b"wrong")

    done = dtool.run("item", "fetch", uri, identifier_of("a"))

    assert done.returncode == 1
    assert done.stdout == ""
    assert "the manifest says" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (
        Path(dtool.output("item", "fetch", uri, identifier_of("b")).strip()).read_text() == "fine"
    )


COMMANDS = [
    "ls",
    "summary",
    "identifiers",
    "name",
    "uuid",
    "status",
    "readme show",
    "tag ls",
    "annotation ls",
    "overlays show",
    "verify",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_asks_the_server_a_few_times(
    dtool: Dtool, counting: Front, uri: str, command: str
) -> None:
    dtool.output(*command.split(), through(counting, uri))
    cold, counting.requests[:] = list(counting.requests), []
    dtool.output(*command.split(), through(counting, uri))

    assert len(cold) <= 4, cold
    assert len(counting.requests) <= 3, counting.requests


def test_listing_asks_for_a_page_of_a_hundred_at_a_time(
    server: ServerHandle, dtool: Dtool, counting: Front
) -> None:
    backend = server.add_base_uri(search=[server.username], register=[server.username])
    base = f"{server.base_uri.rpartition('/')[0]}/{backend.removeprefix('s3://')}"
    for number in range(101):
        upload(server, {}, base_uri=backend, name=f"number-{number:03}")

    listed = dtool.output("ls", "-v", through(counting, base))

    assert listed.count("number-") == 101
    assert len(counting.requests) <= 3, counting.requests


def test_missing_dataset_is_none(dtool: Dtool, base: str) -> None:
    done = dtool.run("summary", f"{base}/11111111-2222-3333-4444-555555555555")

    assert done.returncode == 2
    assert "URI is not a dataset" in done.stderr


@pytest.mark.parametrize("command", ["ls", "summary", "cp --resume", "verify", "tag ls"])
@pytest.mark.parametrize(
    ("token", "said"),
    [("", "no token"), ("not.a.token", "refuses the token"), ("expired", "expired")],
)
def test_refused_token_is_told(
    server: ServerHandle, dtool: Dtool, uri: str, command: str, token: str, said: str
) -> None:
    if token == "expired":
        token = server.token_for(server.username, exp=1_000_000_000)
    target = ["."] if command.startswith("cp") else []

    line = dtool.refusal(*command.split(), uri, *target, env={"DSERVER_TOKEN": token})

    assert line.startswith("Error: ")
    assert said in line
    assert "not a dataset" not in line


def test_missing_permission_is_told(server: ServerHandle, dtool: Dtool, uri: str) -> None:
    foreign = server.add_base_uri(search=["somebody"]).removeprefix("s3://")
    elsewhere = f"{server.base_uri.rpartition('/')[0]}/{foreign}"

    assert "no search permission" in dtool.refusal("ls", elsewhere)
    assert "may not search" in dtool.refusal("summary", f"{elsewhere}/{uuid_of(uri)}")


def test_server_that_is_away_is_told(dtool: Dtool) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"

        assert "cannot be reached" in dtool.refusal("ls", f"dserver://{address}/s3/b")
        assert "cannot be reached" in dtool.refusal("name", f"dserver://{address}/s3/b/{UUID}")


def test_dataset_that_is_not_there_is_not_taken_for_its_base_uri(dtool: Dtool, base: str) -> None:
    unknown = f"{base}/{UUID}"

    for command in ("ls", "inventory"):
        assert unknown in dtool.refusal(command, unknown)
    assert dtool.run("ls", f"{'/'.join(base.split('/')[:3])}/{UUID}").returncode != 0


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("dserver://", "expected dserver://"),
        ("dserver:///s3/b", "expected dserver://"),
        ("dserver://h/s3", "expected dserver://"),
        ("dserver://h/s3/a/../b", "relative component"),
        ("dserver://h", "names no base URI"),
    ],
)
def test_malformed_uri_is_told(dtool: Dtool, uri: str, said: str) -> None:
    assert said in dtool.refusal("ls", uri)


def test_debugging_shows_no_secrets(server: ServerHandle, dtool: Dtool, uri: str) -> None:
    done = dtool.run("--debug", "item", "fetch", uri, identifier_of("nested/a/b/c/deep.txt"))

    assert done.returncode == 0
    assert "/data/" in done.stderr  # the store was asked
    assert "Signature" not in done.stderr
    assert server.token not in done.stderr


def test_server_below_a_path_with_a_private_authority(
    server: ServerHandle, dtool: Dtool, uri: str, tmp_path: Path
) -> None:
    certificates = make_certificates(tmp_path)
    with front(server.url, "/lookup", certificates) as passing:
        host = passing.url.split("/")[2]
        settings = tmp_path / ".config/dtool/dtool.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(
            json.dumps(
                {
                    f"DSERVER_URL_{host}": passing.url,
                    f"DSERVER_CA_FILE_{host}": str(certificates.authority),
                }
            )
        )

        assert dtool.output("name", uri.replace(uri.split("/")[2], host)) == f"{NAME}\n"


def test_importing_the_broker_imports_nothing_heavy() -> None:
    program = (
        "import sys, dtoolcore.storagebroker, dtoolcore.filehasher; before = set(sys.modules);"
        " import time; start = time.process_time(); import dserverfs.broker;"
        " print(round(1000 * (time.process_time() - start)));"
        " print(*sorted(set(sys.modules) - before))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    used_ms, imported = done.stdout.splitlines()
    assert not {"requests", "urllib3", "pyfuse3", "trio", "diskcache", "click"} & set(
        name.partition(".")[0] for name in imported.split()
    )
    assert {name for name in imported.split() if name.startswith("dserverfs")} == {
        "dserverfs",
        "dserverfs.base",
        "dserverfs.base.dtool_layout",
        "dserverfs.broker",
        "dserverfs.broker.problems",
        "dserverfs.broker.storage_broker",
        "dserverfs.base.errors",
        "dserverfs.base.limits",
        "dserverfs.base.model",
        "dserverfs.base.printable",
        "dserverfs.base.retry",
    }
    assert int(used_ms) < 200  # 5 to 10


def test_dtool_tells_the_version(dtool: Dtool) -> None:
    assert f"dserver, dserverfs, version {dserverfs.__version__}" in dtool.run("--version").stdout
