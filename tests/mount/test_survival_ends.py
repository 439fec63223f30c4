"""The end of a mount that would survive its daemon, and daemons that are exchanged on purpose."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest

from dserverfs.base.mountinfo import find_mounted
from dserverfs.cli.main import main
from dserverfs.mount.channel import messages
from dserverfs.mount.channel.succession import MAX_STARTS
from dserverfs.settings import STARTED_IN
from dserverfs.tree import number_journal
from tests.support.accounts import Account
from tests.support.mount_daemons import (
    Remountable,
    channel_of,
    remountable,
    stopped,
    wait_for,
    wait_for_end,
)
from tests.support.mounts import detach
from tests.support.servers import ServerHandle, upload
from tests.support.staged_datasets import status
from tests.support.successors import kill_daemon, log_of, successor_of

pytest_plugins = ["tests.support.mount_fixtures"]


@pytest.fixture
def mount(mount: Remountable) -> Remountable:
    mount.mount("--channel", "on", "--freeze-delay", "manual")
    return mount


def channel_behind(mount: Remountable) -> int:
    found = channel_of(mount.daemon())
    assert found is not None
    return found


def require_dead(mount: Remountable) -> None:
    """Require that who looks gets an error, and not an empty directory."""
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.listdir(mount.path)


@pytest.mark.parametrize("kills", [0, 1])
@pytest.mark.parametrize("ending", ["umount", "SIGTERM", "fusermount3 -u"])
def test_an_end_that_is_wanted_ends_the_mount(
    mount: Remountable, current_user: Account, ending: str, kills: int
) -> None:
    daemon, channel = mount.daemon(), channel_behind(mount)
    for _ in range(kills):
        daemon = kill_daemon(mount)
    assert channel == channel_behind(mount)

    if ending == "umount":
        done = current_user.dserverfs("umount", mount.path)
        assert (done.returncode, done.stderr) == (0, "")
    elif ending == "SIGTERM":
        os.kill(daemon, signal.SIGTERM)
    else:
        current_user.run("fusermount3", "-u", mount.path, check=True)

    wait_for_end(daemon)
    wait_for_end(channel)
    assert find_mounted(mount.path) is None


def test_mount_is_unmounted_while_it_has_no_daemon(mount: Remountable) -> None:
    before, channel = mount.daemon(), channel_behind(mount)
    os.kill(before, signal.SIGKILL)
    detach(mount.path)

    wait_for_end(before)
    wait_for_end(channel)
    assert find_mounted(mount.path) is None


@pytest.mark.parametrize("kills", [0, 1])
def test_end_of_the_channel_is_the_end_of_the_mount(mount: Remountable, kills: int) -> None:
    for _ in range(kills):
        kill_daemon(mount)
    daemon, channel = mount.daemon(), channel_behind(mount)

    os.kill(channel, signal.SIGKILL)

    wait_for_end(daemon)
    require_dead(mount)
    mount.mount("--channel", "on")  # over the dead one
    assert mount.daemon() != daemon
    assert mount.path.is_dir()


def test_daemons_that_cannot_be_started_are_the_end_of_the_mount(mount: Remountable) -> None:
    daemon, channel = mount.daemon(), channel_behind(mount)
    directory = mount.staging
    directory.rename(directory.with_name("away"))
    directory.write_text("no directory")  # so that no daemon can have it

    os.kill(daemon, signal.SIGKILL)

    wait_for_end(channel)
    require_dead(mount)
    log = log_of(mount)
    assert log.count("another one is started") == MAX_STARTS
    assert f"the mount ends: {MAX_STARTS} daemons in a row ended before they served" in log
    assert str(directory) in log.partition("another one is started")[2]
    directory.unlink()
    directory.with_name("away").rename(directory)


def test_a_second_mount_there_is_refused_while_a_daemon_follows(
    mount: Remountable, current_user: Account, server: ServerHandle, token: str
) -> None:
    before = mount.daemon()
    os.kill(before, signal.SIGKILL)

    done = current_user.dserverfs(
        "mount", server.base_uri, mount.path, env={"DSERVER_TOKEN": token}
    )

    assert done.returncode == 1
    assert "is mounted there already" in done.stderr
    successor_of(mount, before)


def test_commands_find_the_next_daemon(mount: Remountable, current_user: Account) -> None:
    made = mount.path / "staged"
    made.mkdir()
    (made / "file").write_text("content")
    now = kill_daemon(mount)

    facts = status(current_user, made)
    assert (facts["state"], facts["name"]) == ("open", "staged")
    assert current_user.dserverfs("freeze", made).returncode == 0
    listed = {each["path"]: each for each in status(current_user)["mounts"]}
    assert listed[str(mount.path)]["answers"]
    assert mount.daemon() == now


def test_errors_that_programs_were_given_are_remembered(
    mount: Remountable, current_user: Account
) -> None:
    made = mount.path / "errors"
    made.mkdir()
    with pytest.raises(PermissionError):
        (made / "link").symlink_to("elsewhere")
    kept = current_user.home / ".local/state/dserverfs"
    wait_for(
        lambda: any(
            b"errors/link" in path.read_bytes() for path in kept.glob("errors/" + "?" * 32)
        ),
        "that they are kept",
    )

    kill_daemon(mount)

    said = current_user.dserverfs("status", made).stdout
    assert "symbolic link" in said


def surroundings(pid: int) -> dict[str, object]:
    """Return what a process has from the one that started it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {
        **{name: status[name] for name in ("Umask", "Uid", "Gid", "Groups", "SigBlk")},
        "ignored": int(status["SigIgn"], 16) & ~(1 << 31),  # a signal of the C library's own
        "environment": {each for each in environment if not each.startswith(STARTED_IN.encode())},
        "session": os.getsid(pid),
        "directory": os.readlink(f"/proc/{pid}/cwd"),
        **{name: Path(f"/proc/{pid}/{name}").read_text() for name in ("cgroup", "limits")},
        "open": [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)],
    }


def test_the_next_daemon_is_started_as_the_first_was(mount: Remountable) -> None:
    before, channel = surroundings(mount.daemon()), channel_behind(mount)
    assert b"DSERVER_TOKEN" not in Path(f"/proc/{channel}/environ").read_bytes()

    for _ in range(2):
        now = kill_daemon(mount)
        wait_for(lambda: os.readlink(f"/proc/{now}/fd/2") == os.devnull, "its own log")  # noqa: B023
        assert surroundings(now) == before


def test_paths_count_from_where_the_mount_was_made(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    """In the environment or dtool.json: a channel and its daemons are in another directory."""
    upload(server, {"item": b"content"}, name="relative")
    home = current_user.home
    (home / "own-token").write_text(token)
    (home / "own-token").chmod(0o600)
    env = {
        "DSERVER_TOKEN_FILE": "own-token",
        "DSERVER_CACHE_DIR": "own-cache",
        "DSERVER_STAGING_DIR": "own-staging",
        "XDG_STATE_HOME": "own-state",
    }
    with remountable(current_user, server.base_uri, env) as made:
        options = ("--channel", "on", "--freeze-delay", "manual")
        command = ("mount", server.base_uri, made.path, *options)
        current_user.dserverfs(*command, env=env, check=True)
        (made.path / "new").mkdir()
        (made.path / "new/file").write_text("the only copy")
        for _ in range(2):
            kill_daemon_of(made)
            assert (made.path / "new/file").read_text() == "the only copy"
            assert (made.path / "relative/data/item").read_bytes() == b"content"
        assert not [each for each in Path("/").iterdir() if each.name.startswith("own-")]
        assert (home / "own-staging").is_dir()


def kill_daemon_of(mount: Remountable) -> None:
    """Kill the daemon, and wait for the next one, whose log may be anywhere."""
    before = mount.daemon()
    os.kill(before, signal.SIGKILL)
    wait_for_end(before)

    def is_another() -> bool:
        with contextlib.suppress(AssertionError):
            return mount.daemon() != before
        return False

    wait_for(is_another, "a daemon in the place of the dead one")


def test_mount_goes_on_whose_token_is_lost(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    """Nobody may list it then; with a token all is as before, and what is staged is there."""
    file = current_user.home / "token-to-be-lost"
    file.write_text(token)
    file.chmod(0o600)
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN_FILE": str(file)}) as made:
        made.mount("--channel", "on", "--freeze-delay", "manual")
        (made.path / "staged-here").mkdir()
        (made.path / "staged-here/file").write_text("the only copy")
        file.unlink()

        for _ in range(2):
            kill_daemon(made)
            with pytest.raises(PermissionError):
                os.listdir(made.path)

        file.write_text(token)
        file.chmod(0o600)
        wait_for(lambda: lists(made.path, "staged-here"), "the listing")
        assert (made.path / "staged-here/file").read_text() == "the only copy"


def lists(path: Path, name: str) -> bool:
    try:
        return name in os.listdir(path)
    except PermissionError:
        return False


# Restarts


def test_restart_has_another_daemon_serve_and_unmounts_nothing(
    mount: Remountable, current_user: Account, server: ServerHandle
) -> None:
    upload(server, {"item": b"content"}, name="restarted")
    wait_for((mount.path / "restarted").exists, "a new listing")
    made = mount.path / "kept-staged"
    made.mkdir()
    (made / "file").write_text("content")
    before, device = mount.daemon(), mount.path.stat().st_dev
    with (mount.path / "restarted/data/item").open("rb", buffering=0) as file:
        done = current_user.dserverfs("restart", mount.path)

        assert (done.returncode, done.stderr) == (0, "")
        assert mount.daemon() != before
        assert f"(process {mount.daemon()})" in done.stdout
        assert file.read() == b"content"
    assert mount.path.stat().st_dev == device
    assert (made / "file").read_text() == "content"
    assert "left to another daemon" in log_of(mount)
    done = current_user.dserverfs("restart", mount.path)
    assert done.returncode == 0, done.stderr


def test_restart_waits_for_who_writes(mount: Remountable, current_user: Account) -> None:
    made = mount.path / "written"
    made.mkdir()
    before = mount.daemon()
    with (made / "file").open("w") as file:
        file.write("content")
        file.flush()

        done = current_user.dserverfs("restart", mount.path)

        assert done.returncode == 1
        assert "open for writing in it: 1 file" in done.stderr
        file.write(" and more")
    assert mount.daemon() == before
    assert (made / "file").read_text() == "content and more"


@pytest.mark.parametrize(
    ("where", "what", "said"),
    [
        (number_journal, "FORMAT", "this version would give other inode numbers"),
        (messages, "VERSION", "its channel is of another version: unmount it"),
    ],
)
def test_restart_by_a_version_that_cannot_go_on_is_refused(
    mount: Remountable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: ModuleType,
    what: str,
    said: str,
) -> None:
    before = mount.daemon()
    monkeypatch.setattr(where, what, getattr(where, what) + 1)
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
        if (value := mount.account.environment.get(name)) is not None:
            monkeypatch.setenv(name, value)

    assert main(["restart", str(mount.path)]) == 1

    assert said in capsys.readouterr().err
    assert mount.daemon() == before


def test_restart_needs_a_channel(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as mount:
        mount.mount("--channel", "off")

        done = current_user.dserverfs("restart", mount.path)

        assert done.returncode == 1
        assert "mount it without --channel off" in done.stderr


def test_restart_of_a_stopped_daemon_says_so(mount: Remountable, current_user: Account) -> None:
    with stopped(mount.daemon()):
        done = current_user.dserverfs("restart", mount.path)

    assert done.returncode == 1
    assert "stopped" in done.stderr
