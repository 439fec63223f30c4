"""Mounts that mount(8) makes and umount(8) ends, by fstab or not, as at the start of a machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from dserverfs.base.mountinfo import find_mounted
from dserverfs.cli import mount_helper
from dserverfs.cli.main import main
from tests.support.accounts import Account, is_reachable_by_all
from tests.support.mount_daemons import daemon_of
from tests.support.mounts import WITHOUT_MOUNTS, detach, mounted
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle
from tests.support.service_manager import manager

by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs mount(8) for others")


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the helper's scripts."""
    directory = tmp_path / "sbin"
    directory.mkdir()
    monkeypatch.setattr(mount_helper, "require_roots_own", lambda path: None)
    assert main(["mount-helper", "install", "--directory", str(directory)]) == 0
    return directory


@pytest.fixture
def token_file(server: ServerHandle, tmp_path: Path) -> Path:
    path = tmp_path / "token file"
    path.write_text(server.token)
    path.chmod(0o600)
    return path


def with_helpers(helpers: Path, fstab: Path, script: str) -> list[str]:
    """Return the command that runs a script where /sbin has the helpers, and fstab those lines.

    In a mount namespace of its own, whose mounts go with its last process.
    """
    if not Path("/etc/fstab").exists():
        pytest.skip("there is no /etc/fstab to mount another over")
    binds = f"mount --bind {helpers} /usr/sbin && mount --bind {fstab} /etc/fstab"
    return ["unshare", "--mount", "sh", "-ec", f"{WITHOUT_MOUNTS} {binds}\n{script}"]


def of_fstab(*fields: str | Path) -> str:
    """Return a line of fstab, in which a blank is \\040."""
    return " ".join(str(field).replace(" ", "\\040") for field in fields) + " 0 0\n"


def staged(directory: Path) -> list[Path]:
    return list(directory.glob("*/*/[!.]*/state"))


@by_root
def test_line_of_fstab_is_mounted_and_umount_freezes(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    helpers: Path,
    token_file: Path,
    tmp_path: Path,
) -> None:
    place, fstab = tmp_path / "a mount", tmp_path / "fstab"
    place.mkdir()
    options = (
        "rw,_netdev,nofail,noauto,x-systemd.automount,noatime,dirsync,uid=7,cache_size=1G,"
        f"token_file={token_file},staging_dir={tmp_path}/staging,log_file={tmp_path}/log"
    )
    fstab.write_text(of_fstab(server.base_uri, place, "fuse.dserverfs", options))
    script = (
        f"trap 'umount -il \"{place}\" 2>/dev/null || true' EXIT\n"
        f"mount '{place}'\n"
        f"findmnt -n -o OPTIONS -M '{place}'\n"
        f"stat -c 'owner %u' '{place}'\n"
        f"mkdir '{place}/from-fstab'; echo content > '{place}/from-fstab/item'\n"
        f"ls '{tmp_path}'/staging/*/*/*/state\n"
        f"umount '{place}'\n"
        f"! findmnt -M '{place}'\n"
    )

    done = current_user.run(*with_helpers(helpers, fstab, script))

    assert done.returncode == 0, done.stderr
    assert f"{server.base_uri} is mounted at {place}; its log is {tmp_path}/log" in done.stdout
    for word in ("rw,", "noatime", "dirsync", "owner 7", "/state\n"):
        assert word in done.stdout
    assert staged(tmp_path / "staging") == []
    log = (tmp_path / "log").read_text()
    assert "unmounted" in log
    assert server.token not in log + done.stdout + done.stderr


@by_root
def test_mount_that_fails_is_one_line_and_status_32(
    fuse: None, current_user: Account, server: ServerHandle, helpers: Path, tmp_path: Path
) -> None:
    mount = ["mount", "-t", "fuse.dserverfs", server.base_uri, str(tmp_path)]
    for options in (["-o", "what=ever"], ["-o", f"token_file={tmp_path}/none"], ["-o", "remount"]):
        script = " ".join([*mount, *options])
        done = current_user.run(*with_helpers(helpers, Path("/dev/null"), script))
        assert done.returncode == 32, done.stderr
        assert done.stderr.startswith("dserverfs: ")
        assert done.stderr.count("\n") == 1, done.stderr


@by_root
def test_user_of_a_line_of_fstab_mounts_and_unmounts(
    fuse: None,
    ordinary_user: Account,
    current_user: Account,
    server: ServerHandle,
    helpers: Path,
    tmp_path: Path,
) -> None:
    """mount(8) runs the helper as the user; the user's own token and home count."""
    if not is_reachable_by_all(Path(sys.executable)):
        pytest.skip("this Python is for root alone")
    place, fstab = ordinary_user.home / "users-mount", tmp_path / "fstab"
    ordinary_user.run("mkdir", place, check=True)
    token = ordinary_user.home / "users-token"
    ordinary_user.run("sh", "-c", f"umask 077; cat > {token}", input=server.token, check=True)
    options = f"user,noauto,token_file={token},log_file={ordinary_user.home}/users.log"
    fstab.write_text(of_fstab(server.base_uri, place, "fuse.dserverfs", options))
    as_user = " ".join(map(str, ordinary_user.command()))
    script = (
        f"trap 'umount -il {place} 2>/dev/null || true' EXIT\n"
        f"chmod 755 {tmp_path} {helpers}\n"
        f"{as_user} mount {place}\nfindmnt -n -o OPTIONS -M {place}\n"
        f"{as_user} umount {place}\n! findmnt -M {place}\n"
    )

    try:
        done = current_user.run(*with_helpers(helpers, fstab, script))
    finally:
        token.unlink()

    assert done.returncode == 0, done.stderr
    uid = int(ordinary_user.run("id", "-u").stdout)
    for word in (f"user_id={uid},", "noexec", "nosuid", "nodev"):
        assert word in done.stdout


@pytest.fixture
def users_place(ordinary_user: Account) -> Iterator[Path]:
    path = ordinary_user.home / "at-boot"
    ordinary_user.run("mkdir", "-p", path, check=True)
    yield path
    detach(path)


@by_root
def test_root_mounts_as_another_user(
    fuse: None,
    current_user: Account,
    ordinary_user: Account,
    server: ServerHandle,
    users_place: Path,
) -> None:
    if not is_reachable_by_all(Path(sys.executable)):
        pytest.skip("this Python is for root alone")
    tokens = ordinary_user.home / ".config/dtool"
    ordinary_user.run("mkdir", "-p", tokens, check=True)
    config = json.dumps({f"DSERVER_TOKEN_{DserverURI.parse(server.base_uri).server}": server.token})
    ordinary_user.run("sh", "-c", f"umask 077; cat > {tokens}/dtool.json", input=config, check=True)

    try:
        done = current_user.dserverfs(
            *("mount", server.base_uri, users_place, "-o", f"setuid={ordinary_user.name}"),
            env={"DSERVER_TOKEN": "one of root"},
        )
    finally:
        (tokens / "dtool.json").unlink()

    assert done.returncode == 0, done.stderr
    found = find_mounted(users_place)
    assert found is not None
    assert f"{ordinary_user.home}/.local/state" in done.stdout
    daemon = Path(f"/proc/{daemon_of(users_place)}")
    status = (daemon / "status").read_text()
    uid = int(ordinary_user.run("id", "-u").stdout)
    assert f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
    assert ordinary_user.dserverfs("umount", users_place).returncode == 0
    assert find_mounted(users_place) is None


def test_mounting_as_another_is_for_root_alone(
    ordinary_user: Account, server: ServerHandle, users_place: Path
) -> None:
    for name, why in (("root", "only root can"), ("no-such-user", "there is no such user")):
        done = ordinary_user.dserverfs(
            "mount", server.base_uri, users_place, "-o", f"setuid={name}"
        )
        assert done.returncode == 1
        assert f"-o setuid={name}: {why}" in done.stderr


def test_mount_fuse3_finds_the_command_where_there_is_no_helper(
    fuse: None, current_user: Account, server: ServerHandle, token_file: Path, tmp_path: Path
) -> None:
    """It is run as `dserverfs URI DIRECTORY -o OPTIONS`."""
    place = tmp_path / "place"
    place.mkdir()
    options = f"rw,nodev,token_file={token_file}"
    try:
        done = current_user.dserverfs(server.base_uri, place, "-o", options)

        assert done.returncode == 0, done.stderr
        assert find_mounted(place) is not None
        assert current_user.dserverfs("umount", place).returncode == 0
    finally:
        detach(place)


def test_manager_of_services_is_told_of_a_mount_in_the_foreground(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    command = current_user.dserverfs_command("mount", "-f", server.base_uri, place)
    with manager(str(tmp_path / "notify")) as systemd:
        environment = {"DSERVER_TOKEN": token, "NOTIFY_SOCKET": systemd.name}
        try:
            with current_user.spawn(*command, env=environment) as process:
                told = systemd.told()
                assert find_mounted(place) is not None
                assert told == {
                    "READY": "1",
                    "STATUS": f"{server.base_uri} is mounted at {place}",
                }
                process.terminate()
                assert systemd.told()["STOPPING"] == "1"
                assert process.wait(LATE_S) == 0
        finally:
            detach(place)


def test_manager_of_services_hears_nothing_of_a_daemon(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    """It is another's service that this was run in, and not that service's to be ready."""
    with manager(str(tmp_path / "notify")) as systemd:
        with mounted(current_user, server.base_uri, token, env={"NOTIFY_SOCKET": systemd.name}):
            pass
        assert systemd.is_told_nothing()


def test_level_of_a_log_changes_while_the_mount_goes_on(
    fuse: None, ordinary_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    log = ordinary_user.home / "levels.log"
    with mounted(ordinary_user, server.base_uri, token, "--log-file", str(log)) as path:
        for level in ("debug", "warning"):
            done = ordinary_user.dserverfs("status", "--log-level", level, path)
            assert done.stdout.splitlines() == [f"log level: {level}", f"log: {log}"]
            ordinary_user.run("ls", path / "what-is-not-there")
        refused = ordinary_user.dserverfs("status", "--log-level", "info")

    said = log.read_text()
    assert "the level of this log is debug from now on" in said
    assert " DEBUG " in said
    assert token not in said
    # Nothing of the look-up after it, or of the end.
    assert said.endswith(": the level of this log is warning from now on\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "name a path in the mount" in refused.stderr
