"""A daemon serves a FUSE device that another program opened and mounted, without any privilege."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from dserverfs.base.mountinfo import find_mounted
from dserverfs.cli.main import main
from dserverfs.mount import given_device, mountpoint
from tests.support.accounts import Account
from tests.support.child_processes import SETPRIV
from tests.support.given_devices import Device, mounted_device
from tests.support.mount_daemons import wait_for, wait_for_end
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, upload
from tests.support.service_manager import manager
from tests.support.staged_datasets import freeze, leave, status
from tests.support.staged_states import staged_states
from tests.support.tcp_relay import relay

by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts with mount(2)")


@pytest.fixture
def user(ordinary_user: Account) -> Account:
    return ordinary_user


@pytest.fixture
def device(fuse: None, user: Account) -> Iterator[Device]:
    """A device that is mounted for an ordinary user, and served by nobody."""
    owner = pwd.getpwnam(user.name)
    number = len(list(user.home.glob("given-*")))
    with mounted_device(user.home / f"given-{number}", owner.pw_uid, owner.pw_gid) as device:
        yield device


@pytest.fixture
def env(user: Account, token: str, tmp_path: Path) -> Mapping[str, str]:
    staging = user.home / f"staging-{tmp_path.name}"
    return {"DSERVER_TOKEN": token, "DSERVER_STAGING_DIR": str(staging)}


def daemon_of(env: Mapping[str, str]) -> int:
    """Return the process in the background that has this test's own environment."""
    mark = f"DSERVER_STAGING_DIR={env['DSERVER_STAGING_DIR']}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                if marked and "\nPPid:\t1\n" in (entry / "status").read_text():
                    return int(entry.name)
    raise AssertionError("no daemon serves it")


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("dserverfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@by_root
def test_given_device_is_read_written_frozen_asked_and_unmounted_by_who_mounted_it(
    user: Account, device: Device, server: ServerHandle, env: Mapping[str, str]
) -> None:
    upload(server, {"a/b": b"content"}, name="given-frozen")

    options = ("--freeze-delay", "manual", "-o", "nodev,umask=0077", "--channel", "on")
    done = device.serve(user, server.base_uri, env, *options)
    assert (done.returncode, done.stderr) == (
        0,
        "dserverfs: -o nodev: passed over; the program that mounted"
        f" /dev/fd/{device.fd} decides that\n",
    )
    assert f"{server.base_uri} is mounted at /dev/fd/{device.fd}; its log is " in done.stdout
    pid = daemon_of(env)
    device.close()
    path = device.path

    assert "given-frozen" in user.run("ls", path, check=True).stdout
    assert user.run("cat", path / "given-frozen/data/a/b", check=True).stdout == "content"
    assert "stats" in user.run("ls", path / ".dserverfs", check=True).stdout
    leave(user, path / "given-new")
    leave(user, path / "given-open")
    assert freeze(user, path / "given-new").startswith(server.base_uri)
    assert status(user, path / "given-new")["state"] == "frozen"
    facts = status(user)
    mine = [one for one in facts["mounts"] if one["path"] == str(path)]
    assert [(one["uri"], one["answers"]) for one in mine] == [(server.base_uri, True)]
    found = user.dserverfs("doctor").stdout
    assert f"ok       mount {path}: {server.base_uri} answers; the program" in found
    ended = user.dserverfs("umount", path)
    assert ended.returncode == 1
    assert f"{path}: stays mounted: the program that mounted it unmounts it" in ended.stderr
    assert "given-open (open)" in ended.stderr

    device.unmount()

    wait_for_end(pid)
    names = {
        record["name"]: record for _, record in staged_states(Path(env["DSERVER_STAGING_DIR"]))
    }
    assert names.keys() == {"given-open"}
    control = user.home / ".local/state/dserverfs/control"
    assert not list(control.glob("*given-*"))
    log = next((user.home / ".local/state/dserverfs").glob("mount-dev-fd-*.log")).read_text()
    assert "unmounted" in log
    assert env["DSERVER_TOKEN"] not in log


@by_root
@pytest.mark.parametrize(("fstype", "channel"), [("fuse", "on"), ("fuse.dserverfs", "off")])
def test_daemon_of_a_given_device_that_is_killed_leaves_it_dead(
    fuse: None,
    user: Account,
    server: ServerHandle,
    env: Mapping[str, str],
    tmp_path: Path,
    fstype: str,
    channel: str,
) -> None:
    """As long as nothing else has the device open: so no child of the daemon may have it."""
    owner = pwd.getpwnam(user.name)
    path = user.home / f"killed-{fstype}"
    with mounted_device(path, owner.pw_uid, owner.pw_gid, fstype=fstype) as device:
        assert device.serve(user, server.base_uri, env, "--channel", channel).returncode == 0
        pid = daemon_of(env)
        device.close()
        assert status(user, path)["state"] == "directory"
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)

        looked = user.run("ls", path)
        if channel == "on" and os.strerror(errno.ECONNABORTED) in looked.stderr:
            looked = user.run("ls", path)  # the channel had taken that request
        assert os.strerror(errno.ENOTCONN) in looked.stderr
        asked = one_line(user.dserverfs("status", path))
        assert (fstype != "fuse") or f"{path} has died; the program that mounted it" in asked
        answering = [one["path"] for one in status(user)["mounts"] if one["answers"]]
        assert str(path) not in answering
        assert not list((user.home / ".local/state/dserverfs/control").glob("*-given-*"))


@by_root
def test_daemon_in_the_foreground_tells_its_manager_and_ends_without_unmounting(
    user: Account, device: Device, server: ServerHandle, env: Mapping[str, str]
) -> None:
    """As `apptainer --fusemount host:...` and CSI drivers run it, and end it with SIGTERM."""
    command = device.command(user, server.base_uri, "-f")
    # That of the ordinary user, who writes to it.
    with manager(f"@dserverfs-given-{os.getpid()}") as systemd:
        environment = {**user.environment, **env, "PATH": "/nonexistent"}
        environment["NOTIFY_SOCKET"] = systemd.name
        process = subprocess.Popen(
            command, env=environment, cwd=user.home, pass_fds=[device.fd], stderr=subprocess.PIPE
        )
        try:
            assert (
                systemd.told()["STATUS"] == f"{server.base_uri} is mounted at /dev/fd/{device.fd}"
            )
            device.close()
            assert user.run("ls", device.path).returncode == 0
            process.terminate()
            assert process.wait(LATE_S) == 0
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            said = process.stderr.read().decode()
            process.stderr.close()
    assert find_mounted(device.path) is not None
    assert os.strerror(errno.ENOTCONN) in user.run("ls", device.path).stderr
    assert "Traceback" not in said


@by_root
@pytest.mark.parametrize(
    "options", [[], ["--allow-other"], ["--channel", "on"]], ids=["alone", "with others", "channel"]
)
def test_others_whom_the_kernel_lets_in_read_only_if_asked_to_and_write_nothing(
    fuse: None,
    user: Account,
    server: ServerHandle,
    env: Mapping[str, str],
    tmp_path: Path,
    options: list[str],
) -> None:
    """Whatever the program said that mounted: without default_permissions no mode counts."""
    upload(server, {"a/b": b"content"}, name=f"for-others-{tmp_path.name}", readme=b"a: 1\n")
    owner = pwd.getpwnam(user.name)
    path = user.home / f"others-{tmp_path.name}"
    user.run("chmod", "711", user.home, check=True)
    with mounted_device(path, owner.pw_uid, owner.pw_gid, "allow_other") as device:
        done = device.serve(user, server.base_uri, env, "--freeze-delay", "manual", *options)
        assert (done.returncode, done.stderr) == (0, "")
        pid = daemon_of(env)
        device.close()
        frozen, staged = path / f"for-others-{tmp_path.name}", path / f"staged-{tmp_path.name}"
        leave(user, staged, "secret")
        user.run("chmod", "600", staged / "file", check=True)

        def other(*command: str | Path) -> bool:
            alone = ("--reuid=65534", "--regid=65534", "--clear-groups", "--")
            tried = subprocess.run([SETPRIV, *alone, *command], capture_output=True, timeout=60)
            said = (b"Permission denied", b"Operation not permitted")
            assert tried.returncode == 0 or any(one in tried.stderr for one in said)
            return tried.returncode == 0

        user.run("ls", "-l", frozen / "data/a", check=True)
        may_read = "--allow-other" in options
        assert other("cat", frozen / "data/a/b") is may_read
        assert other("ls", frozen / "data") is may_read
        assert not other("cat", staged / "file")
        for command in (
            ("mkdir", path / "new"),
            ("touch", staged / "new"),
            ("rm", "-f", staged / "file"),
            ("mv", staged / "file", staged / "moved"),
            ("ln", staged / "file", staged / "linked"),
            ("chmod", "777", staged / "file"),
            ("truncate", "-s0", staged / "file"),
            ("sh", "-c", 'echo a: 2 > "$0"', frozen / "README.yml"),
            ("setfattr", "-n", "user.dserverfs.freeze", "-v", "1", staged),
        ):
            assert not other(*command), command
        assert user.run("cat", staged / "file", check=True).stdout == "secret"
        assert user.run("cat", frozen / "README.yml", check=True).stdout == "a: 1\n"
        device.unmount()
        wait_for_end(pid)


@by_root
@pytest.mark.skipif(shutil.which("mount.fuse3") is None, reason="mount.fuse3 is not installed")
def test_mount_fuse3_gives_the_device_of_its_mount_to_the_helper_of_mount(
    fuse: None, user: Account, server: ServerHandle, env: Mapping[str, str], tmp_path: Path
) -> None:
    """Its drop_privileges mounts as root, and starts the daemon without any privilege."""
    helper = user.home / "mount.fuse.dserverfs"
    python = shlex.quote(str(user.python))
    helper.write_text(f'#!/bin/sh\nexec {python} -m dserverfs mount-helper mount "$@"\n')
    helper.chmod(0o755)
    token_file = user.home / "token"
    token_file.write_text(env["DSERVER_TOKEN"])
    os.chown(token_file, pwd.getpwnam(user.name).pw_uid, -1)
    token_file.chmod(0o600)
    path, log = user.home / "by-fuse3", user.home / "by-fuse3.log"
    user.run("mkdir", path, check=True)
    options = f"drop_privileges,setuid={user.name},nodev,token_file={token_file},log_file={log}"
    try:
        done = subprocess.run(
            ["mount.fuse3", f"{helper}#{server.base_uri}", path, "-o", options],
            env={**user.environment, "PATH": f"/nonexistent:{user.environment['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert user.run("mkdir", path / "by-fuse3").returncode == 0
        assert status(user, path / "by-fuse3")["state"] == "open"
        (mine,) = (one for one in status(user)["mounts"] if one["path"] == str(path))
        assert mine["uri"] == server.base_uri
        assert user.dserverfs("discard", path / "by-fuse3").returncode == 0
    finally:
        subprocess.run(["umount", "-il", path], check=False, timeout=60)
        token_file.unlink()  # the home is that of other tests, too
    wait_for(lambda: "unmounted" in log.read_text(), "the end of the daemon")


@by_root
def test_device_that_is_served_is_not_served_again(
    user: Account, device: Device, server: ServerHandle, env: Mapping[str, str]
) -> None:
    assert device.serve(user, server.base_uri, env).returncode == 0

    for options in ([], ["-f"]):
        again = one_line(device.serve(user, server.base_uri, env, *options))
        assert f"/dev/fd/{device.fd}: is served already; each daemon needs" in again
    device.close()
    assert user.run("ls", device.path).returncode == 0


@by_root
def test_device_that_is_unmounted_before_it_is_served_is_told(
    user: Account, device: Device, server: ServerHandle, env: Mapping[str, str]
) -> None:
    host, _, port = DserverURI.parse(server.base_uri).server.partition(":")
    with relay(host, int(port)) as line:
        line.pause()
        uri = f"dserver://127.0.0.1:{line.port}/s3/datasets"
        cache = user.home / "cache-of-unmounted"
        command = device.command(user, uri, "-f", "--cache-dir", str(cache))
        with subprocess.Popen(
            command,
            env={**user.environment, **env},
            cwd=user.home,
            pass_fds=[device.fd],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                wait_for(cache.exists, "the daemon")
                device.unmount()
                line.resume()
                said = process.communicate(timeout=60)[1]
            finally:
                process.kill()
    assert process.returncode == 1
    last = said.strip().split("\n")[-1]
    assert last == (
        f"dserverfs: /dev/fd/{device.fd}: is not mounted, or no longer; mount it, and start"
        " dserverfs after that"
    )


@by_root
def test_own_files_in_a_given_mount_are_refused(
    fuse: None,
    server: ServerHandle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mountpoint, "ANSWER_TIMEOUT_S", 0.2)
    with mounted_device(tmp_path / "given", 0, 0) as device:
        cache = str(device.path / "cache")

        status = main(["mount", server.base_uri, f"/dev/fd/{device.fd}", "--cache-dir", cache])

    assert status == 1
    assert f"dserverfs: {cache}: no answer within" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_descriptors_that_are_no_mounted_device_are_refused(
    fuse: None, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    unmounted = os.open("/dev/fuse", os.O_RDWR)
    half = os.open("/dev/fuse", os.O_RDONLY)
    directory = os.open("/tmp", os.O_RDONLY)
    ours, theirs = socket.socketpair()
    try:
        for number, said in (
            (unmounted, "is not mounted, or no longer"),
            (half, "is not open for reading and writing"),
            (directory, "is no FUSE device"),
            (ours.fileno(), "is no FUSE device"),
            (1, "is standard input, output or error"),
            (10**6 + 7, "Bad file descriptor: the program that mounts has to leave"),
            (10**19, "Bad file descriptor: the program that mounts has to leave"),
        ):
            assert main(["mount", "dserver://localhost/s3/b", f"/dev/fd/{number}", *options]) == 1
            line = capsys.readouterr().err
            assert line.startswith(f"dserverfs: /dev/fd/{number}: {said}")
            assert line.count("\n") == 1
    finally:
        for fd in (unmounted, half, directory):
            os.close(fd)
        ours.close()
        theirs.close()


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/dev/fd/3", 3),
        ("/dev/fd/12/", 12),
        ("/dev/fd", None),
        ("/dev/fd/x", None),
        ("/dev/fd/-1", None),
        ("/dev/fd/٣", None),
        ("/dev/fd/3/x", None),
        ("dev/fd/3", None),
    ],
)
def test_device_is_named_as_libfuse_names_it(path: str, number: int | None) -> None:
    assert given_device.number_of(Path(path)) == number


def test_user_mounts_in_a_user_namespace_and_gives_the_device_away(
    fuse: None, user: Account, server: ServerHandle, env: Mapping[str, str]
) -> None:
    """As container runtimes of ordinary users do."""
    apart = ("unshare", "--user", "--map-root-user", "--mount")
    if (tried := user.run(*apart, "true")).returncode:
        pytest.skip(f"no user namespaces for ordinary users: {tried.stderr.strip()}")
    upload(server, {"a": b"content"}, name="in-a-namespace")
    path = user.home / "in-a-namespace"
    user.run("mkdir", path, check=True)
    tests = Path(__file__).parents[2]
    script = (
        f"export PYTHONPATH={tests}:$PYTHONPATH\n"
        f'"$0" -m tests.support.given_devices "{path}" "$0" -m dserverfs mount "$1" /dev/fd/3\n'
        f'cat "{path}/in-a-namespace/data/a"; mkdir "{path}/from-a-namespace"\n'
        f'echo b > "{path}/from-a-namespace/b"; sync\n'
        f'"$0" -m dserverfs freeze "{path}/from-a-namespace"\n'
        f'"$0" -m dserverfs status || true\n'  # others' mounts have their owner's number here
        f'umount "{path}"\n'
    )

    done = user.run(
        *(*apart, "sh", "-euc", script, user.python, server.base_uri),
        env={**env, "PYTHONDONTWRITEBYTECODE": "1"},
    )

    assert done.returncode == 0, done.stderr
    assert "content" in done.stdout
    assert f"mounted: {server.base_uri} at {path}\n" in done.stdout
