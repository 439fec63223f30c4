"""Every dtool command that makes or changes datasets; dtool-s3 tells what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dtoolcore
import pytest

from dserverfs.base.model import identifier_of
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.layout import DatasetKeys
from tests.support.accounts import Account
from tests.support.dtool_commands import Dtool, dtool_of, s3_access, stored_dataset
from tests.support.dtool_datasets import README, content_of, make_dataset, make_varied_dataset
from tests.support.mounts import detach, mounted
from tests.support.patience import LATE_S
from tests.support.quirky_server import TOKEN, QuirkyServer, quirky_server
from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle, new_uuid
from tests.support.staged_states import staged_states
from tests.support.web_front import front

NAMES = {
    "names/with space.txt": b"space",
    "names/ünïcödé 文字.txt": b"unicode",
    "names/quote'\"s": b"quotes",
    "names/100%25.txt": b"percent",
    "names/-rf": b"option",
    "names/" + "long" * 60: b"long",
    "names/.DS_Store": b"named by a user, so not excluded",
    "empty": b"",
}


@pytest.fixture(scope="module")
def base(server: ServerHandle) -> str:
    """A base URI of this module alone."""
    backend = server.add_base_uri(search=[server.username], register=[server.username])
    return f"{server.base_uri.rpartition('/')[0]}/{backend.removeprefix('s3://')}"


@pytest.fixture
def dtool(server: ServerHandle, tmp_path: Path) -> Dtool:
    return dtool_of(tmp_path, server.token)


@pytest.fixture
def s3(server: ServerHandle, tmp_path: Path) -> Iterator[None]:
    with s3_access(server, tmp_path / "s3-cache"):
        yield


def stored(uri: str) -> dtoolcore.DataSet:
    """Return what dtool-s3 sees of the dataset that a dserver URI names."""
    *_, bucket, uuid = uri.split("/")
    return stored_dataset(uuid, bucket)


def staged_in(home: Path) -> list[Path]:
    """Return the directories of staged datasets of a user."""
    return [directory for directory, _ in staged_states(home / ".local/share/dserverfs/staging")]


def make(dtool: Dtool, base: str, name: str = "made", content: str = "content\n") -> str:
    """Make a proto dataset with one item; return its URI."""
    uri = dtool.output("create", "-q", name, base).strip()
    (dtool.home / "file.txt").write_text(content)
    dtool.output("add", "item", "file.txt", uri)
    return uri


def test_dataset_is_made_by_separate_commands(dtool: Dtool, base: str, s3: None) -> None:
    uri = dtool.output("create", "-q", "by-commands", base).strip()
    for relpath, content in NAMES.items():
        (dtool.home / "item").write_bytes(content)
        os.utime(dtool.home / "item", (1_500_000_000, 1_500_000_000.25))
        dtool.output("add", "item", "item", uri, relpath)
    (dtool.home / "item").unlink()
    for relpath in NAMES:
        dtool.output("add", "metadata", uri, relpath, "length", len(relpath))
    dtool.output("readme", "write", uri, "-", input="description: über\n")
    dtool.output("tag", "set", uri, "one")
    dtool.output("tag", "set", uri, "two")
    dtool.output("tag", "delete", uri, "two")
    dtool.output("annotation", "set", uri, "-t", "json", "typed", '{"a": [1, 2.5, null, true]}')
    dtool.output("annotation", "set", uri, "-t", "int", "five", 5)
    assert dtool.output("status", uri) == "proto\n"
    assert f"*by-commands\n  {uri}\n" in dtool.output("ls", base)
    assert dtool.output("tag", "ls", uri) == "one\n"
    assert "über" in dtool.output("readme", "show", uri)

    dtool.output("freeze", uri)

    assert dtool.output("status", uri) == "frozen\n"
    dataset = stored(uri)
    assert dataset.name == "by-commands"
    assert dataset._admin_metadata["creator_username"] == "tester"
    assert dataset._admin_metadata["created_at"] < dataset._admin_metadata["frozen_at"]
    assert dataset.get_readme_content() == "---\ndescription: über\n"
    assert dataset.list_tags() == ["one"]
    assert dataset.get_annotation("typed") == {"a": [1, 2.5, None, True]}
    assert dataset.get_annotation("five") == 5
    overlay = dataset.get_overlay("length")
    assert overlay == {identifier_of(relpath): str(len(relpath)) for relpath in NAMES}
    for relpath, content in NAMES.items():
        identifier = identifier_of(relpath)
        assert Path(dataset.item_content_abspath(identifier)).read_bytes() == content
        assert dataset.item_properties(identifier)["relpath"] == relpath
        assert dataset.item_properties(identifier)["utc_timestamp"] == 1_500_000_000.25
    assert staged_in(dtool.home) == []


def test_dataset_without_items_is_frozen(dtool: Dtool, base: str, s3: None) -> None:
    uri = dtool.output("create", "-q", "empty", base).strip()

    dtool.output("freeze", uri)

    assert list(stored(uri).identifiers) == []
    assert dtool.output("verify", uri) == "All good :)\n"


def test_two_datasets_may_have_one_name(dtool: Dtool, base: str) -> None:
    first, second = (make(dtool, base, "namesakes") for _ in range(2))

    assert dtool.output("name", first) == dtool.output("name", second) == "namesakes\n"
    dtool.output("freeze", second)
    dtool.output("freeze", first)
    assert dtool.output("name", second) == "namesakes\n"


def test_proto_dataset_is_renamed(dtool: Dtool, base: str, s3: None) -> None:
    uri = make(dtool, base, "before")

    assert dtool.output("name", uri, "after") == "after\n"
    dtool.output("freeze", uri)

    assert stored(uri).name == "after"


def test_item_is_replaced(dtool: Dtool, base: str, s3: None) -> None:
    uri = make(dtool, base, content="old")
    (dtool.home / "file.txt").write_text("new and longer")

    dtool.output("add", "item", "file.txt", uri)
    dtool.output("freeze", uri)

    (identifier,) = stored(uri).identifiers
    assert Path(stored(uri).item_content_abspath(identifier)).read_text() == "new and longer"


@pytest.mark.parametrize(
    ("relpath", "said"),
    [
        ("../outside", "cannot be an item's path"),
        ("/absolute", "cannot be an item's path"),
        ("a//b", "cannot be an item's path"),
        ("x" * 256, "cannot be an item's path"),
        ("/".join(["d" * 100] * 20), "longer than"),
        ("file.txt/below", "cannot be added"),
    ],
)
def test_impossible_path_is_refused(dtool: Dtool, base: str, relpath: str, said: str) -> None:
    uri = make(dtool, base)

    assert said in dtool.refusal("add", "item", "file.txt", uri, relpath)


def test_what_is_no_plain_file_is_refused(dtool: Dtool, base: str) -> None:
    uri = make(dtool, base)
    (dtool.home / "directory").mkdir()

    assert "directory" in dtool.refusal("add", "item", "directory", uri)


def test_path_with_a_newline_is_refused_by_dtool(dtool: Dtool, base: str) -> None:
    uri = make(dtool, base)
    dtool.output("add", "item", "file.txt", uri, "new\nline")

    done = dtool.run("freeze", uri)

    assert done.returncode == 3
    assert "Invalid item name" in done.stdout


def test_name_that_dtool_s3_cannot_read_is_refused(dtool: Dtool, base: str) -> None:
    uri = make(dtool, base)

    assert "dot" in dtool.refusal("annotation", "set", uri, "a.b", "x")


def test_dataset_is_copied_from_disk(dtool: Dtool, base: str, tmp_path: Path, s3: None) -> None:
    local = make_varied_dataset(tmp_path, "from-disk")
    before = json.loads((local / ".dtool/dtool").read_text())

    uri = dtool.output("cp", "-q", local, base).strip()

    assert uri == f"{base}/{before['uuid']}"
    dataset = stored(uri)
    for key in ("uuid", "name", "creator_username", "created_at", "frozen_at"):
        assert dataset._admin_metadata[key] == pytest.approx(before[key], abs=0.001), key
    assert dataset.get_readme_content() == README
    assert dataset.list_tags() == ["testing"]
    assert dataset.get_annotation("answer") == {"value": 42, "text": "ü"}
    overlay = json.loads((local / ".dtool/overlays/odd.json").read_text())
    assert dataset.get_overlay("odd") == overlay
    assert dtool.output("diff", "--full", uri, local)
    manifest = json.loads((local / ".dtool/manifest.json").read_text())
    for identifier, item in manifest["items"].items():
        properties = dataset.item_properties(identifier)
        assert properties["utc_timestamp"] == pytest.approx(item["utc_timestamp"], abs=0.001)
    done = dtool.run("cp", local, base)
    assert done.returncode == 2
    assert "Dataset already exists" in done.stderr


def test_dataset_is_copied_between_base_uris(
    server: ServerHandle, dtool: Dtool, base: str, s3: None
) -> None:
    other = server.add_base_uri(search=[server.username], register=[server.username])
    target = f"{base.rpartition('/')[0]}/{other.removeprefix('s3://')}"
    uri = make(dtool, base)
    for number, ns in enumerate((1_700_000_000_123_456_789, 1_700_000_000_987_654_321)):
        os.utime(dtool.home / "file.txt", ns=(ns, ns))
        dtool.output("add", "item", "file.txt", uri, f"dated-{number}")
    dtool.output("freeze", uri)

    copy = dtool.output("cp", "-q", uri, target).strip()

    assert copy.startswith(target)
    assert stored(copy)._admin_metadata == stored(uri)._admin_metadata
    before, after = stored(uri), stored(copy)
    for identifier in before.identifiers:
        assert after.item_properties(identifier) == before.item_properties(identifier)


def test_broken_copy_is_resumed(dtool: Dtool, base: str, tmp_path: Path, s3: None) -> None:
    contents = {f"item-{number}": content_of(str(number), 5000) for number in range(20)}
    local = make_dataset(tmp_path, "resumed", contents)
    # As a copy that was killed: all but some items, and half of one.
    program = (
        "import sys, os, dtoolcore\n"
        "proto_class = dtoolcore.ProtoDataSet\n"
        "put, count = proto_class.put_item, [0]\n"
        "def put_item(self, fpath, relpath):\n"
        "    count[0] += 1\n"
        "    if count[0] > 12: os.kill(os.getpid(), 9)\n"
        "    return put(self, fpath, relpath)\n"
        "proto_class.put_item = put_item\n"
        "dtoolcore.copy(*sys.argv[1:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(local), base], env=dict(dtool.environment)
    )
    assert killed.returncode == -signal.SIGKILL
    (staged,) = staged_in(dtool.home)
    broken = next(iter((staged / "tree/data").iterdir()))
    broken.write_bytes(broken.read_bytes()[:100])

    uri = dtool.output("cp", "-q", "--resume", local, base).strip()

    assert dtool.output("diff", "--full", uri, local)
    assert dtool.output("verify", "--full", uri) == "All good :)\n"
    frozen_at = json.loads((local / ".dtool/dtool").read_text())["frozen_at"]
    assert stored(uri)._admin_metadata["frozen_at"] == pytest.approx(frozen_at, abs=0.001)


def test_server_away_at_the_freeze_loses_nothing(
    server: ServerHandle, dtool: Dtool, base: str, s3: None
) -> None:
    with front(server.url) as passing:
        host = passing.url.partition("://")[2]
        uri = make(dtool, base.replace(base.split("/")[2], host), "kept-by-broker")

    line = dtool.refusal("freeze", uri)  # nobody listens there any more

    assert "cannot be reached" in line
    assert len(staged_in(dtool.home)) == 1
    settings = dtool.home / ".config/dtool/dtool.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({f"DSERVER_URL_{host}": server.url}))
    assert dtool.output("status", uri) == "proto\n"
    dtool.output("add", "item", "file.txt", uri, "another")
    dtool.output("freeze", uri)
    assert len(stored(uri).identifiers) == 2


def test_lost_right_to_register_is_told_before_anything_is_made(
    server: ServerHandle, dtool: Dtool
) -> None:
    readable = server.add_base_uri(search=[server.username]).removeprefix("s3://")
    base = f"{server.base_uri.rpartition('/')[0]}/{readable}"

    assert "no right to register" in dtool.refusal("create", "none", base)
    assert "no right to register" in dtool.refusal("create", "none", f"{base}-unknown")
    assert staged_in(dtool.home) == []


def test_expired_token_is_told_at_the_freeze(
    server: ServerHandle, dtool: Dtool, base: str, s3: None
) -> None:
    uri = make(dtool, base)
    expired = server.token_for(server.username, exp=1_000_000_000)

    line = dtool.refusal("freeze", uri, env={"DSERVER_TOKEN": expired})

    assert "expired" in line
    dtool.output("freeze", uri)
    assert len(stored(uri).identifiers) == 1


def test_frozen_dataset_takes_no_items(dtool: Dtool, base: str) -> None:
    uri = make(dtool, base)
    dtool.output("freeze", uri)

    done = dtool.run("add", "item", "file.txt", uri)

    assert done.returncode == 2
    assert "not a proto dataset" in done.stderr


def test_metadata_of_a_frozen_dataset_is_changed(dtool: Dtool, base: str, s3: None) -> None:
    uri = make(dtool, base)
    dtool.output("freeze", uri)

    dtool.output("readme", "write", uri, "-", input="changed: yes\n")
    dtool.output("tag", "set", uri, "good")
    dtool.output("tag", "set", uri, "bad")
    dtool.output("tag", "delete", uri, "bad")
    dtool.output("tag", "delete", uri, "never-there")
    dtool.output("annotation", "set", uri, "-t", "float", "weight", 2.5)
    template = dtool.output("overlays", "template", "glob", uri, "is_text", "*.txt")
    dtool.output("overlays", "write", uri, "-", input=template)
    renamed = dtool.output("name", uri, "another-name")

    dataset = stored(uri)
    assert dataset.get_readme_content() == "---\nchanged: yes\n"
    assert dataset.list_tags() == ["good"]
    assert dataset.get_annotation("weight") == 2.5
    assert dataset.get_overlay("is_text") == {identifier_of("file.txt"): True}
    assert renamed == "another-name\n"
    assert dataset.name == "another-name"
    assert dtool.output("readme", "show", uri) == "---\nchanged: yes\n\n"
    assert dtool.output("tag", "ls", uri) == "good\n"
    assert dtool.output("annotation", "get", uri, "weight") == "2.5\n"


def test_earlier_readme_is_kept(server: ServerHandle, dtool: Dtool, base: str) -> None:
    uri = make(dtool, base)
    dtool.output("readme", "write", uri, "-", input="first: 1\n")
    dtool.output("freeze", uri)

    dtool.output("readme", "write", uri, "-", input="second: 2\n")

    store, (*_, bucket, uuid) = ObjectStore(storage_of(server)), uri.split("/")
    keys = [each.key for each in store.iter_objects(bucket, f"{DatasetKeys('', uuid).readme}-")]
    assert [store.read(bucket, key, limit_in_bytes=99) for key in keys] == [b"---\nfirst: 1\n"]


@pytest.fixture(scope="module")
def upstream() -> Iterator[QuirkyServer]:
    """A released dserver with the signed-URL plugin used elsewhere."""
    with quirky_server() as running:
        running.versions = {"dservercore": "0.22.0", "dserver_signed_url_plugin": None}
        running.quirks.knows_items_false = False
        yield running


@pytest.mark.parametrize(
    "command",
    [
        ("readme", "write", "URI", "readme.yml"),
        ("tag", "set", "URI", "tag"),
        ("tag", "delete", "URI", "tag"),
        ("annotation", "set", "URI", "name", "value"),
        ("overlays", "write", "URI", "overlay.csv"),
        ("name", "URI", "another"),
        ("publish", "URI"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_server_that_cannot_change_says_so(
    upstream: QuirkyServer, tmp_path: Path, command: tuple[str, ...]
) -> None:
    uuid = new_uuid()
    upstream.add(uuid, {"a": b"a"})
    dtool = dtool_of(tmp_path, TOKEN)
    (tmp_path / "readme.yml").write_text("a: 1\n")
    (tmp_path / "overlay.csv").write_text(f"identifiers,x,relpaths\n{identifier_of('a')},1,a\n")
    uri = f"dserver://{upstream.url.removeprefix('http://')}/s3/bucket/{uuid}"

    line = dtool.refusal(*(uri if word == "URI" else word for word in command))

    assert "has no route to" in line


def test_published_dataset_is_read_by_its_link_until_that_expires(
    dtool: Dtool, base: str, tmp_path: Path
) -> None:
    local = make_varied_dataset(tmp_path, "published-by-broker")
    uri = dtool.output("cp", "-q", local, base).strip()

    link = dtool.output("publish", "-q", uri).strip()
    brief = dtool.run("publish", "-q", uri, env={"DTOOL_S3_PUBLISH_EXPIRY": "1"}).stdout.strip()

    anybody = dtool_of(tmp_path, "")
    assert anybody.output("name", link) == "published-by-broker\n"
    assert anybody.output("tag", "ls", link) == "testing\n"
    (tmp_path / "copies").mkdir()
    anybody.output("cp", "-q", link, "copies")
    assert anybody.output("diff", "--full", local, tmp_path / "copies/published-by-broker")
    assert dtool.run("publish", uri, env={"DTOOL_S3_PUBLISH_EXPIRY": "x"}).returncode == 1
    deadline = time.monotonic() + LATE_S
    while anybody.run("name", brief).returncode == 0:
        assert time.monotonic() < deadline


def test_dataset_is_copied_from_a_link(
    server: ServerHandle, dtool: Dtool, base: str, s3: None
) -> None:
    other = server.add_base_uri(search=[server.username], register=[server.username])
    uri = make(dtool, base, "linked")
    dtool.output("freeze", uri)
    link = dtool.output("publish", "-q", uri).strip()

    copy = dtool.output(
        "cp", "-q", link, f"{base.rpartition('/')[0]}/{other.removeprefix('s3://')}"
    ).strip()

    assert stored(copy).name == "linked"
    assert stored(copy)._admin_metadata["created_at"] == stored(uri)._admin_metadata["created_at"]


@pytest.mark.usefixtures("fuse")
def test_mount_and_broker_see_each_others_proto_datasets(
    server: ServerHandle, current_user: Account, base: str, s3: None
) -> None:
    dtool = dtool_of(current_user.home, server.token)
    uri = make(dtool, base, "by-dtool")
    with mounted(current_user, base, server.token) as mountpoint:
        assert (mountpoint / "by-dtool/data/file.txt").read_text() == "content\n"
        (mountpoint / "by-mount").mkdir()
        (mountpoint / "by-mount/file").write_text("from a mount")

        listed = dtool.output("ls", base)

        assert "*by-dtool\n" in listed
        assert "*by-mount\n" in listed
        dtool.output("freeze", uri)
    assert len(stored(uri).identifiers) == 1


@pytest.mark.usefixtures("fuse")
def test_dataset_left_staged_by_a_mount_is_frozen_by_dtool(
    server: ServerHandle, current_user: Account, base: str, s3: None
) -> None:
    dtool = dtool_of(current_user.home, server.token)
    with mounted(current_user, base, server.token) as mountpoint:
        (mountpoint / "left").mkdir()
        (mountpoint / "left/file").write_text("from a mount")
        (mountpoint / "left/.DS_Store").write_text("excluded")
        (mountpoint / "left/__pycache__").mkdir()
        (mountpoint / "left/__pycache__/x").write_text("excluded")
        (mountpoint / "left/README.yml").write_text("made: in a mount\n")
        detach(mountpoint)
    lines = iter(dtool.output("ls", base).splitlines())
    uri = next(next(lines).strip() for line in lines if line == "*left")
    (current_user.home / "more").write_text("by dtool")

    added = dtool.run("add", "item", "more", uri)
    refused = dtool.run("add", "item", "more", uri, "__pycache__/more")
    dtool.output("freeze", uri)

    assert added.returncode == 0
    assert "will be frozen only by command" in added.stderr
    assert "DSERVER_EXCLUDE says that '__pycache__/more' is no item" in refused.stderr
    dataset = stored(uri)
    assert dataset.name == "left"
    assert dataset.get_readme_content() == "made: in a mount\n"
    assert set(dataset.identifiers) == {identifier_of("file"), identifier_of("more")}
