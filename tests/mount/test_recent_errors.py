"""The reasons of errors that programs were given, as `dserverfs status` tells them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base import errors
from dserverfs.base.model import DserverURI
from dserverfs.mount.errnos import Told
from dserverfs.mount.kept_errors import KEPT_S, MAX_ERRORS, KeptErrors, all_kept
from dserverfs.mount.recent_errors import _TRIED, MAX_REASON_LETTERS, RecentErrors
from tests.mount.test_errnos import REQUESTS
from tests.support.accounts import Account
from tests.support.mount_daemons import Remountable
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle, upload
from tests.support.staged_datasets import freeze, status
from tests.support.tcp_relay import relay

pytest_plugins = ["tests.support.mount_fixtures"]

FROZEN = Told(errno.EROFS, "is frozen", errors.Frozen("is frozen"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


def test_same_error_is_counted_and_the_last_one_is_last() -> None:
    recent = RecentErrors("host", clock_s=Clock())

    for path in ("a", "b", "a"):
        recent.note("write", path, FROZEN)

    b, a = recent.below("")
    assert (b.path, b.times, b.first_at, b.last_at) == ("b", 1, 1002.0, 1002.0)
    assert (a.path, a.times, a.first_at, a.last_at) == ("a", 2, 1001.0, 1003.0)
    assert (a.tried, a.errno, a.reason) == ("write", "EROFS", "is frozen")


def test_only_the_last_ones_are_remembered_and_none_is_long() -> None:
    recent = RecentErrors("host")
    long = Told(errno.EIO, "x" * 10_000, errors.ProtocolError("x"))

    for number in range(MAX_ERRORS + 5):
        recent.note("read", f"a\x1b[2J\n{number}", long)

    known = recent.below("")
    assert len(known) == MAX_ERRORS
    assert known[0].path == "a\\x1b[2J\\n5"
    assert len(known[-1].reason) == MAX_REASON_LETTERS


@pytest.mark.parametrize(
    ("top", "rest", "shown"),
    [
        ("", "", ["a", "a/b", "ab", "c/d"]),
        ("a", "", ["a", "a/b"]),
        ("a/b", "", ["a/b"]),
        ("c", "", ["c/d"]),
        ("d", "", []),
        ("", "a/b/x", ["a", "a/b"]),
        ("a", "b/x", ["a/b"]),
        ("a", "x", []),
        ("", "c", ["c/d"]),
    ],
)
def test_errors_below_a_path_are_those_of_it_of_what_is_in_it_and_on_the_way(
    top: str, rest: str, shown: list[str]
) -> None:
    recent = RecentErrors("host")
    for path in ("a", "a/b", "ab", "c/d"):
        recent.note("open", path, FROZEN)

    assert [error.path for error in recent.below(top, rest)] == shown


def test_every_request_and_every_kind_of_error_has_words() -> None:
    assert set(_TRIED) >= set(REQUESTS) - {"forget", "release", "releasedir"}
    recent = RecentErrors("host:5000")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]

    for kind in kinds:
        if issubclass(kind, errors.DserverfsError):
            recent.note("read", kind.__name__, Told(errno.EIO, "x", kind("x")))

    remedies = {error.path: error.remedy for error in recent.below("")}
    assert "dserverfs login host:5000" in str(remedies["NotAuthenticated"])
    assert remedies["UsageError"] is None  # its message says what to do
    assert not any("{" in (remedy or "") for remedy in remedies.values())


# On a mount


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=os.strerror(number)):
        yield


def one_line_each(account: Account, path: Path) -> dict[str, dict[str, Any]]:
    """Return the errors that `status PATH --json` tells, by their paths."""
    return {error["path"]: error for error in status(account, path)["errors"]}


def test_reasons_of_refusals_are_told_with_path_and_remedy(
    base: Path, current_user: Account
) -> None:
    frozen, staged = base / "with-reasons", base / "refusing-reasons"
    frozen.mkdir()
    (frozen / "x").write_text("x")
    freeze(current_user, frozen)
    staged.mkdir()
    (staged / "below").mkdir()

    with refused(errno.EPERM):
        (staged / "below/pw").symlink_to("/etc/passwd")
    with refused(errno.EPERM), contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(staged / "socket"))
    with refused(errno.EILSEQ):
        os.close(os.open(os.fsencode(staged) + b"/\xff", os.O_CREAT | os.O_WRONLY))
    with refused(errno.EINVAL):
        (base / "not a name").mkdir()
    with refused(errno.EPERM):
        (base / "beside-reasons").write_text("x")
    for _ in range(3):
        with refused(errno.EROFS):
            (frozen / "data/x").write_text("y")
    with refused(errno.ENOENT):
        os.stat(staged / "nothing")
    with refused(errno.EEXIST):
        staged.mkdir()

    told = one_line_each(current_user, staged)
    assert set(told) == {f"{staged}/below/pw", f"{staged}/socket", f"{staged}/\\udcff"}
    link = told[f"{staged}/below/pw"]
    assert (link["tried"], link["errno"]) == ("make the symbolic link", "EPERM")
    assert "below/pw is a symbolic link" in link["reason"]
    assert "cp -rL" in link["remedy"]
    item = one_line_each(current_user, frozen / "data")[f"{frozen}/data/x"]
    assert (item["times"], item["reason"]) == (3, "it is in a frozen dataset")
    everything = one_line_each(current_user, base)
    assert {f"{base}/not a name", f"{base}/beside-reasons", *told} <= set(everything)

    # Of a path that is not there, and as people see it.
    done = current_user.dserverfs("status", staged / "below/pw", check=True)
    assert "errors that programs were given:\n" in done.stdout
    assert f"        make the symbolic link {staged}/below/pw (EPERM)\n" in done.stdout
    assert "    20" in done.stdout  # the time
    assert "the last 20" in current_user.dserverfs("status").stdout
    nothing = current_user.dserverfs("status", staged / "nothing")
    assert nothing.returncode == 1
    assert nothing.stderr == f"dserverfs: {staged}/nothing: No such file or directory\n"


def test_reason_is_told_of_a_path_that_cannot_be_looked_at(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    """`ls` says "No route to host"; `status` of the same path says why."""
    upload(server, {"x": b"x"}, name="away-for-reasons")
    host, port = DserverURI.parse(server.base_uri).server.split(":")
    with relay(host, int(port)) as way:
        uri = server.base_uri.replace(f":{port}", f":{way.port}")
        with mounted(current_user, uri, token, "--cache-dir", str(tmp_path / "cache")) as path:
            assert "away-for-reasons" in os.listdir(path)
            way.pause()
            with refused(errno.EHOSTUNREACH):
                os.listdir(path / "away-for-reasons/data")
            asked = current_user.dserverfs("status", path / "away-for-reasons/data/x")
            told = one_line_each(current_user, path / "away-for-reasons")
            way.resume()

    assert asked.returncode == 0, asked.stderr
    assert "cannot be reached" in asked.stdout
    assert f"dserverfs whoami 127.0.0.1:{way.port}" in asked.stdout
    assert {error["errno"] for error in told.values()} == {"EHOSTUNREACH"}


def test_dead_daemon_is_told_with_what_to_do(
    mount: Remountable, current_user: Account, server: ServerHandle
) -> None:
    mount.mount()
    (mount.path / "staged-and-dead").mkdir()
    mount.end(signal.SIGKILL)

    for command in ("status", "freeze", "discard", "warm", "verify", "prove"):
        done = current_user.dserverfs(command, mount.path / "staged-and-dead")
        assert done.returncode == 1
        assert f"has died: dserverfs umount {mount.path}, then mount it again" in done.stderr
    listed = current_user.dserverfs("status")
    ended = current_user.dserverfs("umount", mount.path)

    first = listed.stdout.splitlines().index(
        f"mounted: {server.base_uri} at {mount.path} (does not answer)"
    )
    assert "has died" in listed.stdout.splitlines()[first + 1]
    assert listed.returncode == 1
    assert ended.returncode == 0
    assert "its daemon had died" in ended.stderr


def test_errors_stay_after_the_mount_has_ended(
    mount: Remountable,
    current_user: Account,
    server: ServerHandle,
) -> None:
    mount.mount()
    refusing = mount.path / "outlasting"
    refusing.mkdir()
    with refused(errno.EPERM):
        (refusing / "link").symlink_to("/etc/passwd")
    path = f"{refusing}/link"
    assert set(one_line_each(current_user, mount.path)) == {path}
    current_user.dserverfs("umount", mount.path)

    listed = status(current_user)
    (ended,) = [one for one in listed["ended"] if one["path"] == str(mount.path)]
    assert (ended["uri"], ended["errors"][0]["path"]) == (server.base_uri, path)
    told = current_user.dserverfs("status").stdout
    assert f"not mounted any more: {server.base_uri} at {mount.path}\n    1 error, the" in told
    asked = current_user.dserverfs("status", refusing)
    assert asked.returncode == 1
    assert f"make the symbolic link {path} (EPERM)" in asked.stdout
    assert current_user.dserverfs("status", mount.path.parent).returncode == 1

    # The next mount goes on with them, and one of another URI does not.
    mount.mount()
    assert set(one_line_each(current_user, mount.path)) == {path}
    assert str(mount.path) not in [one["path"] for one in status(current_user)["ended"]]


def test_kept_errors_of_long_ago_and_damaged_ones_are_none(tmp_path: Path) -> None:
    recent = RecentErrors("host", clock_s=Clock())
    recent.note("open", "a\x1b[2Jb", FROZEN)
    errors_then = recent.below("")
    for name in ("one", "two", "cut"):
        KeptErrors(tmp_path, Path("/lab", name), "dserver://host").keep(errors_then)
    files = {each.uri + each.path: each for each in all_kept(tmp_path, lambda: 1002.0)}
    assert len(files) == 3
    assert KeptErrors(tmp_path, Path("/lab/one"), "dserver://host").load() == errors_then
    assert KeptErrors(tmp_path, Path("/lab/one"), "dserver://other").load() == []

    (cut, *_) = tmp_path.iterdir()
    content = cut.read_bytes()
    for damaged in (content[:-10], b"", b"[]", content.replace(b'"times": 1', b'"times": "x"')):
        cut.write_bytes(damaged)
        assert len(all_kept(tmp_path, lambda: 1002.0)) == 2
        assert not cut.exists()
    assert all_kept(tmp_path, lambda: 1002.0 + KEPT_S) == []
    assert list(tmp_path.iterdir()) == []
