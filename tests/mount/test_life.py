"""The life of a mount where its surroundings are odd: links, homes, stopped daemons, signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from dserverfs.base.errors import UsageError
from dserverfs.base.model import DserverURI
from dserverfs.base.mountinfo import find_mounted
from dserverfs.mount.mountpoint import refuse_own_files, resolve, unmount
from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.mount_daemons import Remountable, stopped, wait_for, wait_for_end
from tests.support.mounts import WITHOUT_OTHER_MOUNTS, detach
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, upload
from tests.support.tcp_relay import relay

pytest_plugins = ["tests.support.mount_fixtures"]


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line in which a command said why it failed."""
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("dserverfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# Mount points


def test_a_mount_point_that_is_a_link_is_mounted_recovered_and_unmounted(
    mount: Remountable, current_user: Account
) -> None:
    real = mount.path.with_name(f"{mount.path.name}-real")
    mount.path.rename(real)
    mount.path.symlink_to(real.name)

    mount.mount()
    assert find_mounted(real) is not None
    mount.end(signal.SIGKILL)
    mount.mount()  # over the dead one
    ended = current_user.dserverfs("umount", mount.path)

    assert ended.returncode == 0, ended.stderr
    assert find_mounted(real) is None


@pytest.mark.parametrize("link", ["../b", "/{root}/b", "../a/../b", "c", "."])
def test_links_at_the_end_of_a_path_are_followed(tmp_path: Path, link: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/c").symlink_to("../b")
    (tmp_path / "a/link").symlink_to(link.format(root=tmp_path))

    assert resolve(tmp_path / "a/link") == Path(os.path.realpath(tmp_path / "a/link"))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    assert resolve(tmp_path / "one").parent == tmp_path


def test_a_mount_point_of_long_names_in_chinese(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    path = current_user.home / ("数" * 80) / ("据" * 80)
    current_user.run("mkdir", "-p", path, check=True)
    try:
        done = current_user.dserverfs("mount", server.base_uri, path, env={"DSERVER_TOKEN": token})
        assert done.returncode == 0, done.stderr
        assert current_user.dserverfs("umount", path).returncode == 0
    finally:
        detach(path)
    logs = [
        log.name for log in (current_user.home / ".local/state/dserverfs").glob("mount*据*.log")
    ]
    assert len(logs) == 1


@pytest.mark.parametrize("option", ["--cache-dir", "--staging-dir", "--log-file"])
@pytest.mark.parametrize("place", ["below", "link", "at", "other"])
def test_own_files_in_a_mount_are_refused(
    mount: Remountable, current_user: Account, server: ServerHandle, option: str, place: str
) -> None:
    target = {"below": mount.path / "x", "at": mount.path}.get(place)
    if place == "link":
        target = mount.path.with_name(f"{mount.path.name}-link")
        target.symlink_to(mount.path / "x/y")
    elif place == "other":
        mount.mount()
        target = mount.path / "x"
    assert target is not None
    where = mount.path if place != "other" else current_user.home / "elsewhere"
    where.mkdir(exist_ok=True)

    line = failed(current_user.dserverfs("mount", server.base_uri, where, option, target))

    assert f"{option} {target}: is " in line
    assert "outside" in line


def test_a_token_file_below_the_mount_point_is_refused(
    mount: Remountable, current_user: Account, server: ServerHandle
) -> None:
    done = current_user.dserverfs(
        "mount",
        server.base_uri,
        mount.path,
        env={"DSERVER_TOKEN_FILE": str(mount.path / "token")},
    )

    assert "DSERVER_TOKEN_FILE" in failed(done)


def test_own_files_beside_the_mount_point_are_good(tmp_path: Path) -> None:
    refuse_own_files(tmp_path / "m", {"a": tmp_path / "m2", "b": tmp_path, "c": None})

    with pytest.raises(UsageError):
        refuse_own_files(tmp_path / "m", {"a": tmp_path / "m"})


# Options of mount(8)


def test_options_of_an_fstab_are_taken(mount: Remountable) -> None:
    mount.mount(
        "-o",
        "defaults,rw,_netdev,nofail,user,noauto,nodev,nosuid,x-systemd.automount,comment=data",
        "--log-level",
        "DEBUG",
    )

    (mount.path / "written").mkdir()
    assert os.listdir(mount.path / "written") == []
    (mount.path / "written").rmdir()


@pytest.mark.parametrize(("options", "writable"), [("ro,rw", True), ("rw,ro", False)])
def test_the_last_of_ro_and_rw_counts(mount: Remountable, options: str, writable: bool) -> None:
    mount.mount("-o", options)

    try:
        (mount.path / "new").mkdir()
        (mount.path / "new").rmdir()
    except OSError:
        assert not writable
    else:
        assert writable


# Commands and the daemon


def test_a_stopped_daemon_is_told_in_bounded_time_and_stays_mounted(
    mount: Remountable, current_user: Account
) -> None:
    mount.mount()
    (mount.path / "kept-while-stopped").mkdir()
    (mount.path / "kept-while-stopped/file").write_text("content")

    with stopped(mount.daemon()):
        ended = failed(current_user.dserverfs("umount", "--timeout", "1", mount.path))
        asked = current_user.dserverfs("status")

    assert "does not answer" in ended
    assert "fusermount3" in ended
    assert asked.returncode == 1  # of what it has staged only the disk could be asked
    assert f"{mount.path} (does not answer)" in asked.stdout
    assert (mount.path / "kept-while-stopped/file").read_text() == "content"
    assert current_user.dserverfs("discard", mount.path / "kept-while-stopped").returncode == 0


def test_umount_returns_when_the_daemon_has_ended(mount: Remountable, server: ServerHandle) -> None:
    """Until then it holds the locks of what is staged and not sent, which the next mount needs."""
    upload(server, {"a": b"a"}, name="not-sent", readme=b"a: 1\n")
    mount.mount()
    daemon = os.pidfd_open(mount.daemon())
    try:
        assert (mount.path / "not-sent/README.yml").read_text() == "a: 1\n"
        with stopped(server.process.pid):  # so the daemon has something to do at its end
            (mount.path / "not-sent/README.yml").write_text("a: 2\n")
            mount.account.dserverfs("umount", mount.path, "--timeout", "1")

            assert select.select([daemon], [], [], 0)[0]
    finally:
        os.close(daemon)


@contextlib.contextmanager
def in_another_namespace(path: Path, tmp_path: Path) -> Iterator[str]:
    """Have a process keep a copy of the mount, and of no other: their daemons would not end."""
    script = WITHOUT_OTHER_MOUNTS + "echo; exec sleep 600"
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(path)]
    with spawn(command, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"in the mount namespace of process {process.pid} ("


@contextlib.contextmanager
def bound(path: Path, tmp_path: Path) -> Iterator[str]:
    """Have it mounted at a second place."""
    subprocess.run(["mount", "--bind", path, tmp_path], check=True)
    try:
        yield f"at {tmp_path}:"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting something twice needs root")
@pytest.mark.parametrize("kept", [in_another_namespace, bound])
def test_umount_says_where_else_it_is_mounted_and_what_stays_staged(
    mount: Remountable,
    tmp_path: Path,
    kept: Callable[[Path, Path], contextlib.AbstractContextManager[str]],
) -> None:
    mount.mount("--freeze-delay", "manual")
    (mount.path / "staged").mkdir()
    daemon = mount.daemon()

    with kept(mount.path, tmp_path) as where:
        ended = mount.account.dserverfs("umount", mount.path)

    assert ended.returncode == 1
    assert f"still mounted {where}" in ended.stderr
    assert ended.stderr.startswith("stays staged: ")
    wait_for_end(daemon)


def test_umount_finds_the_daemon_whatever_home_is(
    mount: Remountable, current_user: Account, tmp_path: Path
) -> None:
    mount.mount()
    (mount.path / "elsewhere").mkdir()
    (mount.path / "elsewhere/file").write_text("content")
    current_user.run("rm", "-r", current_user.home / ".local/state/dserverfs/control", check=True)

    ended = current_user.dserverfs("umount", mount.path, env={"HOME": str(tmp_path)})

    assert ended.returncode == 0, ended.stderr
    assert mount.states() == {}  # frozen


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own needs root")
def test_umount_without_a_way_to_the_daemon_says_so_and_leaves_the_mount(
    mount: Remountable, current_user: Account, tmp_path: Path
) -> None:
    mount.mount()

    line = failed(
        current_user.run(
            *("unshare", "--net", current_user.python, "-m", "dserverfs", "umount", mount.path),
            env={"HOME": str(tmp_path)},
        )
    )

    assert "nothing was frozen or sent" in line
    assert find_mounted(mount.path) is not None


@pytest.fixture
def without_mtab(tmp_path: Path) -> str:
    """A PATH whose fusermount3 answers as in a container that has none."""
    program = tmp_path / "fusermount3"
    said = "fusermount3: failed to open /etc/mtab: No such file or directory"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can unmount without fusermount3")
def test_umount_where_there_is_no_mtab(
    mount: Remountable, current_user: Account, without_mtab: str
) -> None:
    mount.mount()

    ended = current_user.dserverfs("umount", mount.path, env={"PATH": without_mtab})

    assert ended.returncode == 0, ended.stderr
    assert find_mounted(mount.path) is None


def test_who_cannot_unmount_where_there_is_no_mtab_is_told_what_to_do(
    mount: Remountable, without_mtab: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.mount()
    monkeypatch.setenv("PATH", without_mtab)
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    with pytest.raises(UsageError, match=r"failed to open /etc/mtab.* ln -s .*mounts /etc/mtab$"):
        unmount(mount.path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_mount_command_that_is_ended_mounts_nothing_later(
    fuse: None, current_user: Account, server: ServerHandle, token: str, number: signal.Signals
) -> None:
    path = current_user.home / f"ended-{number}"
    current_user.run("mkdir", path, check=True)
    host, _, port = DserverURI.parse(server.base_uri).server.partition(":")
    with relay(host, int(port)) as line:
        line.pause()
        uri = f"dserver://127.0.0.1:{line.port}/s3/datasets"
        command = (current_user.python, "-m", "dserverfs", "mount", uri, path)
        with current_user.spawn(*command, env={"DSERVER_TOKEN": token}) as waiting:
            children = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children")
            wait_for(children.read_text, "the daemon")
            daemon = int(children.read_text())
            waiting.send_signal(number)
            waiting.wait(LATE_S)
        line.resume()
        wait_for_end(daemon)

    assert find_mounted(path) is None


# Output that nobody takes


@pytest.mark.parametrize("arguments", [("status",), ("--help",), ("mount", "--help")])
@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        (">/dev/full", 1, "No space left on device"),
        ("| true", 141, ""),
        (">&-", 1, "Bad file descriptor"),
    ],
)
def test_output_that_cannot_be_written_is_no_traceback(
    current_user: Account, arguments: tuple[str, ...], where: str, status: int, said: str
) -> None:
    script = f'"$0" -m dserverfs "$@" {where}'
    if where == "| true":  # that has ended before anything is written
        script = '{ sleep 0.3; "$0" -m dserverfs "$@"; echo $? >&2; } | true'

    done = current_user.run("bash", "-c", script, current_user.python, *arguments)

    assert "Traceback" not in done.stderr
    assert said in done.stderr
    if where == "| true":
        assert done.stderr == f"{status}\n"
    else:
        assert done.returncode == status


# Listings


def test_every_listing_begins_with_its_directory_and_the_one_above(
    mount: Remountable, current_user: Account
) -> None:
    mount.mount("--freeze-delay", "manual")
    (mount.path / "dots/data/below").mkdir(parents=True)
    for number in range(300):  # more than one request takes
        (mount.path / f"dots/data/below/{number}").write_text(str(number))

    def listed(directory: Path) -> list[tuple[str, str]]:
        done = current_user.run("ls", "-aif", directory, check=True)
        lines = [line.split() for line in done.stdout.splitlines()]
        return [(name, number) for number, name in lines]

    def look() -> None:
        for directory in ("", "dots", "dots/data", "dots/data/below"):
            entries = listed(mount.path / directory)
            assert [name for name, _ in entries[:2]] == [".", ".."]
            assert entries[0][1] == str((mount.path / directory).stat().st_ino)
            assert len({name for name, _ in entries}) == len(entries)
            assert len(entries) == 2 + len(os.listdir(mount.path / directory))

    look()
    frozen = current_user.dserverfs("freeze", mount.path / "dots")
    assert frozen.returncode == 0, frozen.stderr
    look()
