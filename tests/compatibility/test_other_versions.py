"""Clients, servers and mounts of released versions meet those of this one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dserverfs.writing.staging.file_hashes import Hashes
from tests.compatibility import released
from tests.compatibility.released import unfinished, with_data_of_its_own, with_dserverfs_of
from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.servers import ServerHandle, running_server
from tests.support.staged_datasets import freeze

ITEMS = {"small": b"small\n", "nested/large.bin": content_of("nested/large.bin", (1 << 20) + 5)}
DIGESTS = {relpath: hashlib.md5(content).hexdigest() for relpath, content in ITEMS.items()}
CHANGED = "---\ndescription: changed by another version\n"


class Meeting(NamedTuple):
    client: Account
    server: ServerHandle
    base_uri: str  # of this meeting alone


@pytest.fixture(scope="module", params=released.VERSIONS)
def earlier(request: pytest.FixtureRequest, test_root: Path) -> Path:
    """The sources of a released version."""
    return released.sources(request.param, test_root)


@pytest.fixture(scope="module", params=["earlier client", "earlier server"])
def meeting(
    fuse: None,
    request: pytest.FixtureRequest,
    earlier: Path,
    current_user: Account,
    server: ServerHandle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Meeting]:
    with contextlib.ExitStack() as stack:
        if request.param == "earlier client":
            client = with_dserverfs_of(current_user, earlier)
        else:
            client = current_user
            data = tmp_path_factory.mktemp("earlier") / "data"
            server = stack.enter_context(running_server(data, sources=earlier))
        backend = server.add_base_uri(search=[server.username], register=[server.username])
        bucket = backend.removeprefix("s3://")
        client = with_data_of_its_own(client, request.param.replace(" ", "-"))
        yield Meeting(client, server, f"{server.base_uri.rpartition('/')[0]}/{bucket}")


def dtool(meeting: Meeting, *arguments: str | Path) -> str:
    """Return what a dtool command of the client says."""
    command = Path(sys.executable).with_name("dtool")
    done = meeting.client.run(
        command, *arguments, env={"DSERVER_TOKEN": meeting.server.token}, timeout_s=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_mount_makes_reads_and_changes_datasets(meeting: Meeting, tmp_path: Path) -> None:
    client, server = meeting.client, meeting.server
    local = make_dataset(tmp_path, "mounted", ITEMS)

    with mounted(client, meeting.base_uri, server.token) as path:
        client.run("cp", "-r", local, path, check=True)
        uri = freeze(client, path / "mounted")
        (path / "mounted/README.yml").write_text(CHANGED)
        (path / "mounted/.dtool/tags/by-mount").touch()
        (path / "mounted/.dtool/annotations/number.json").write_text("5")
        assert md5_of_files(client, path / "mounted/data") == DIGESTS
        assert sorted(each.name for each in path.iterdir()) == ["mounted"]
        warmed = client.dserverfs("warm", path / "mounted")
        verified = client.dserverfs("verify", path / "mounted")

    assert (warmed.returncode, verified.returncode) == (0, 0), (warmed, verified)
    assert unfinished(client) == ([], [])
    assert dtool(meeting, "readme", "show", uri) == f"{CHANGED}\n"
    assert sorted(dtool(meeting, "tag", "ls", uri).split()) == ["by-mount", "testing"]
    assert dtool(meeting, "annotation", "get", uri, "number") == "5\n"


def test_dtool_makes_reads_and_changes_datasets(meeting: Meeting) -> None:
    home = meeting.client.home
    (home / "one.txt").write_bytes(b"one")
    copies = home / f"copies-{meeting.base_uri.rpartition('/')[2]}"
    copies.mkdir()

    uri = dtool(meeting, "create", "-q", "by-dtool-of-another-version", meeting.base_uri).strip()
    dtool(meeting, "add", "item", "one.txt", uri, "nested/one.txt")
    dtool(meeting, "freeze", uri)
    dtool(meeting, "tag", "set", uri, "by-dtool")
    copy = Path(dtool(meeting, "cp", "-q", uri, copies).strip().removeprefix("file://"))

    assert uri in dtool(meeting, "ls", "-q", meeting.base_uri).split()
    assert dtool(meeting, "verify", "--full", uri) == "All good :)\n"
    assert dtool(meeting, "tag", "ls", uri) == "by-dtool\n"
    assert "nested/one.txt" in dtool(meeting, "ls", uri)
    assert (copies / copy.name / "data/nested/one.txt").read_bytes() == b"one"


def test_login_gives_a_token(meeting: Meeting, tmp_path: Path) -> None:
    client, server = meeting.client, meeting.server
    host = server.base_uri.split("/")[2]
    own = {"XDG_CONFIG_HOME": str(tmp_path)}

    login = client.run(
        *(client.python, "-m", "dserverfs", "login", host, "--username", server.username),
        input=(server.data / "password").read_text(),
        env=own,
    )

    assert (login.returncode, login.stderr) == (0, "")
    assert server.username in client.dserverfs("whoami", host, env=own).stdout


def test_commands_speak_to_a_mount_of_an_earlier_version(
    fuse: None, earlier: Path, current_user: Account, server: ServerHandle, token: str
) -> None:
    current_user = with_data_of_its_own(current_user, "asked-by-newer")
    before = with_dserverfs_of(current_user, earlier)
    with mounted(before, server.base_uri, token) as path:
        name = "asked-by-newer"
        (path / name).mkdir()
        (path / name / "file").write_text("content")
        shown = current_user.dserverfs("status", path / name, "--json")
        frozen = current_user.dserverfs("freeze", path / name)
        listed = current_user.dserverfs("status", "--json")
        ended = current_user.dserverfs("umount", path)
        # 0.1.0 logs a question that it does not know as a fault, and goes on.
        for log in current_user.home.glob(f".local/state/dserverfs/mount*-{path.name}.log"):
            log.unlink()

    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout)["state"] == "open"
    assert (frozen.returncode, frozen.stderr) == (0, "")
    mounts = {mount["path"]: mount for mount in json.loads(listed.stdout)["mounts"]}
    assert mounts[str(path)]["answers"]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_dataset_with_block_hashes_is_read_like_any(meeting: Meeting, tmp_path: Path) -> None:
    token = meeting.server.token
    local = make_dataset(tmp_path, "with-block-hashes", ITEMS)

    (uri,) = publish(meeting.base_uri, token, tmp_path / "cache", local)

    with mounted(meeting.client, meeting.base_uri, token) as path:
        assert md5_of_files(meeting.client, path / "with-block-hashes/data") == DIGESTS
    assert dtool(meeting, "verify", "--full", uri) == "All good :)\n"


# By 0.1.0, with the database of hashes, the directory of the files, and the name of one.
HASH = """
import pathlib, sys
from dserverfs.hashing import Hashes
with Hashes(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) as hashes:
    print(hashes.of(pathlib.Path(sys.argv[2], sys.argv[3])), hashes.bytes_read)
"""


def test_versions_share_the_hashes_of_staged_files(
    earlier: Path, current_user: Account, tmp_path: Path
) -> None:
    size = len(ITEMS["nested/large.bin"])
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(ITEMS["nested/large.bin"])
    right = DIGESTS["nested/large.bin"]

    def hash_by_earlier(name: str) -> list[str]:
        before = with_dserverfs_of(current_user, earlier)
        arguments = (tmp_path / "hashes", tmp_path, name)
        done = before.run(before.python, "-c", HASH, *arguments, check=True)
        return done.stdout.split()

    with Hashes(tmp_path / "hashes", tmp_path) as hashes:
        hashes.of(tmp_path / "first")
        found = [hash_by_earlier("first"), *[hash_by_earlier("second") for _ in range(2)]]
        second = hashes.of(tmp_path / "second")

    assert found == [[right, "0"], [right, f"{size}"], [right, "0"]]
    assert (second, hashes.bytes_read) == (right, 2 * size)  # for the hashes of its blocks
