"""Changing frozen datasets in a real mount while the server is away, cannot or may not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from tests.support import servers
from tests.support.accounts import Account
from tests.support.mount_daemons import Remountable, remountable, wait_for_end
from tests.support.mounts import mounted
from tests.support.quirky_changes import become
from tests.support.quirky_server import CONTENTS as QUIRKY_CONTENTS
from tests.support.quirky_server import TOKEN, QuirkyServer
from tests.support.rewritten_files import BEFORE, readme_of, run, unsent, vim_saves, wait_for
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import status
from tests.support.tcp_relay import Relay, relay

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.rewriting_fixtures"]


@pytest.fixture
def way(server: ServerHandle) -> Iterator[Relay]:
    """The way to the server, which can be blocked."""
    host, port = DserverURI.parse(server.base_uri).server.split(":")
    with relay(host, int(port)) as running:
        yield running


@pytest.fixture
def distant(
    fuse: None,
    way: Relay,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uuids: Iterator[str],
) -> Iterator[Remountable]:
    """A mount of one dataset of a server at the end of that way."""
    bucket = server.base_uri.rpartition("/")[2]
    uri = f"dserver://127.0.0.1:{way.port}/s3/{bucket}/{next(uuids)}"
    with remountable(current_user, uri, {"DSERVER_TOKEN": token}) as mount:
        mount.mount()
        yield mount
        way.resume()


def uuid_at(distant: Remountable) -> Path:
    return Path(status(distant.account, distant.path)["uuid"])


def write_while_away(distant: Remountable, way: Relay, text: str) -> Path:
    """Write the README with the server away; return what it is kept in."""
    readme = distant.path / "README.yml"
    assert readme.read_text() == BEFORE
    assert os.listdir(distant.path / ".dtool/tags") == []
    way.pause()
    readme.write_text(text)
    wait_for(lambda: [bool(one["reason"]) for one in unsent(distant.account, distant.path)], [True])
    assert readme.read_text() == text
    (found,) = unsent(distant.account, distant.path)
    assert found["path"] == "README.yml"
    kept = Path(found["file"])
    assert kept.read_text() == text
    return kept


def test_what_was_written_with_the_server_away_is_sent_when_it_is_back(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    kept = write_while_away(distant, way, "away: 1\n")
    uuid = uuid_at(distant)
    everything = distant.account.dserverfs("status", env={})
    assert f"README.yml, in {kept}" in everything.stdout

    way.resume()

    wait_for(lambda: readme_of(server, uuid), "away: 1\n")
    wait_for(lambda: unsent(distant.account, distant.path), [])
    assert (distant.path / "README.yml").read_text() == "away: 1\n"
    assert not kept.exists()


def test_rename_and_fsync_say_that_the_server_is_away(distant: Remountable, way: Relay) -> None:
    assert (distant.path / "README.yml").read_text() == BEFORE
    assert os.listdir(distant.path / ".dtool/tags") == []
    way.pause()

    done = run(distant.path, "sed -i s/before/after/ README.yml")
    assert "No route to host" in done.stderr
    with pytest.raises(OSError, match="No route to host"):
        vim_saves(distant.path, b"vim: 1\n")
    with pytest.raises(OSError, match="No route to host"):
        (distant.path / ".dtool/tags/new").touch()

    assert (distant.path / "README.yml").read_text() == BEFORE
    assert unsent(distant.account, distant.path) == []


def test_umount_lists_what_it_could_not_send_and_the_next_mount_sends_it(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    kept = write_while_away(distant, way, "kept: 1\n")
    uuid = uuid_at(distant)

    done = distant.account.dserverfs("umount", distant.path, "--timeout", "5")

    assert done.returncode == 1, done.stderr
    assert f"/README.yml: {distant_reason(done.stderr)}; kept in {kept}" in done.stderr
    assert kept.read_text() == "kept: 1\n"
    way.resume()
    distant.mount()
    wait_for(lambda: readme_of(server, uuid), "kept: 1\n")
    wait_for(lambda: unsent(distant.account, distant.path), [])
    assert not kept.exists()


def distant_reason(line: str) -> str:
    reason = line.partition("README.yml: ")[2].partition("; kept in")[0]
    assert "127.0.0.1" in reason
    return reason


def test_killed_daemon_has_kept_what_was_not_sent(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    write_while_away(distant, way, "killed: 1\n")
    uuid = uuid_at(distant)

    distant.end(signal.SIGKILL)
    way.resume()
    distant.mount()

    wait_for(lambda: readme_of(server, uuid), "killed: 1\n")
    wait_for(lambda: unsent(distant.account, distant.path), [])
    assert (distant.path / "README.yml").read_text() == "killed: 1\n"


def test_discard_drops_what_was_not_sent(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    kept = write_while_away(distant, way, "wrong: 1\n")

    done = distant.account.dserverfs("discard", distant.path / "README.yml")
    way.resume()  # before, it might be sent first

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("discarded: what was written to ")
    assert not kept.exists()
    assert (distant.path / "README.yml").read_text() == BEFORE
    assert (
        "nothing unsent was written to it"
        in distant.account.dserverfs("discard", distant.path).stderr
    )


def test_nothing_is_left_after_umount(distant: Remountable) -> None:
    (distant.path / ".README.yml.swp").write_text("swap")
    (distant.path / "README.yml").write_text("last: 1\n")
    uuid = uuid_at(distant)

    done = distant.account.dserverfs("umount", distant.path)

    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in distant.staging.glob(".edits/*/*")] == ["lock"]
    distant.mount()
    assert (distant.path / "README.yml").read_text() == "last: 1\n", uuid


def test_last_write_before_a_plain_unmount_is_sent(
    distant: Remountable, server: ServerHandle
) -> None:
    uuid = uuid_at(distant)
    pid = distant.daemon()
    (distant.path / "README.yml").write_text("last: 1\n")

    subprocess.run(["fusermount3", "-u", distant.path], check=True, timeout=30)

    wait_for_end(pid)
    assert readme_of(server, uuid) == "last: 1\n"


@pytest.mark.parametrize(
    ("kind", "register", "message"),
    [
        ("none", True, "Read-only file system"),
        ("own", False, "Permission denied"),
    ],
)
def test_what_the_server_does_not_take_is_refused_at_open(
    fuse: None,
    current_user: Account,
    quirky: QuirkyServer,
    kind: str,
    register: bool,
    message: str,
) -> None:
    become(quirky, kind)
    if not register:
        quirky.register = []
    uuid = servers.new_uuid()
    quirky.add(uuid, QUIRKY_CONTENTS, BEFORE.encode())
    uri = f"dserver://{quirky.url.removeprefix('http://')}/s3/bucket/{uuid}"

    with mounted(current_user, uri, TOKEN) as path:
        for name in ("README.yml", ".README.yml.swp", ".dtool/tags/x", ".dtool/annotations/x.json"):
            with pytest.raises(OSError, match=message):
                os.close(os.open(path / name, os.O_WRONLY | os.O_CREAT, 0o644))
        assert message in run(path, "sed -i s/before/after/ README.yml").stderr
        assert (path / "README.yml").read_text() == BEFORE
    assert quirky.asked("^(PUT|POST|DELETE) /(readmes|tags|annotations)") == 0
