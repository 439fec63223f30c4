"""What goes wrong around a mount: one clear line and a status, never a hang or a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dserverfs.base.mountinfo import find_mounted
from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.mount_daemons import daemon_of, wait_for_end
from tests.support.mounts import WITHOUT_MOUNTS, detach, mounted, publish
from tests.support.patience import LATE_S, SOON_S
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle
from tests.support.tcp_relay import relay

ITEMS = {
    "hello.txt": b"hello\n",
    "more/data.bin": bytes(3_000_000),
    **{f"many/{number}": b"%d" % number * 1000 for number in range(200)},
}


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    local = make_dataset(tmp_path_factory.mktemp("local"), "trouble", ITEMS)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


@pytest.fixture
def mountpoint(current_user: Account) -> Iterator[Path]:
    path = current_user.home / "trouble-mnt"
    path.mkdir()
    yield path
    detach(path)
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()


def refused(
    account: Account, *arguments: str | Path, token: str | None = None, **environment: str
) -> str:
    """Run `dserverfs ARGUMENTS`, which must fail in one line; return that line."""
    env = dict(environment)
    if token is not None:
        env["DSERVER_TOKEN"] = token
    done = account.dserverfs(*arguments, env=env)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("dserverfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# Before the daemon detaches


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "DSERVER_TOKEN"), ("no.real.token", "refuses the token"), ("two words", "malformed")],
)
def test_token_that_is_missing_or_malformed(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    mountpoint: Path,
    token: str | None,
    said: str,
) -> None:
    line = refused(current_user, "mount", server.base_uri, mountpoint, token=token)

    assert said in line
    assert "no.real.token" not in line
    assert find_mounted(mountpoint) is None


def test_token_file_that_is_missing_is_named(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path
) -> None:
    line = refused(
        current_user, "mount", server.base_uri, mountpoint, DSERVER_TOKEN_FILE="no/such/file"
    )

    assert "no/such/file" in line


def test_token_that_is_for_another_server_is_told_where_the_mount_was_asked_for(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str
) -> None:
    elsewhere = "http://data.example:5000"

    line = refused(
        current_user, "mount", server.base_uri, mountpoint, token=token, DSERVER_URL=elsewhere
    )

    assert "DSERVER_TOKEN is not sent there, it is for data.example:5000" in line


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("XDG_STATE_HOME", "name another file with --log-file, or with XDG_STATE_HOME a directory"),
        ("DSERVER_CACHE_DIR", "name another with --cache-dir or DSERVER_CACHE_DIR"),
        ("DSERVER_STAGING_DIR", "name another with --staging-dir or DSERVER_STAGING_DIR"),
    ],
)
def test_place_that_cannot_be_made_is_told_with_what_names_another(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    mountpoint: Path,
    token: str,
    tmp_path: Path,
    setting: str,
    remedy: str,
) -> None:
    (tmp_path / "file").touch()
    no_place = {setting: str(tmp_path / "file/below")}

    line = refused(current_user, "mount", server.base_uri, mountpoint, token=token, **no_place)

    assert f"dserverfs: {tmp_path}/file/below" in line
    assert "Not a directory" in line
    assert remedy in line


def test_unknown_host_wrong_port_and_wrong_uri(
    fuse: None, current_user: Account, mountpoint: Path, token: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        line = refused(
            current_user, "mount", f"dserver://127.0.0.1:{port}/s3/b", mountpoint, token=token
        )
    assert f"127.0.0.1:{port}" in line
    assert "refused" in line
    line = refused(current_user, "mount", "dserver://no.invalid/s3/b", mountpoint, token=token)
    assert "no.invalid" in line
    assert "dserver://" in refused(current_user, "mount", "s3://bucket", mountpoint, token=token)


def test_https_asked_of_a_server_that_speaks_http(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str
) -> None:
    line = refused(
        current_user, "mount", server.base_uri, mountpoint, token=token, DSERVER_PROTOCOL="https"
    )

    assert "DSERVER_PROTOCOL=http" in line


def test_base_uri_without_permission_names_those_with(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str
) -> None:
    elsewhere = server.base_uri.rpartition("/")[0] + "/elsewhere"

    line = refused(current_user, "mount", elsewhere, mountpoint, token=token)

    assert "no search permission on s3://elsewhere" in line
    assert server.base_uri.rpartition("/")[2] in line


def test_dataset_that_does_not_exist(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str
) -> None:
    missing = f"{server.base_uri}/11111111-2222-3333-4444-555555555555"

    assert "no such dataset" in refused(current_user, "mount", missing, mountpoint, token=token)


def test_wrong_port_is_not_tried_for_long(
    fuse: None, current_user: Account, mountpoint: Path, token: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        wrong = f"dserver://127.0.0.1:{probe.getsockname()[1]}"
    began = time.monotonic()

    line = refused(current_user, "mount", wrong, mountpoint, token=token)

    assert "cannot be reached" in line
    assert time.monotonic() - began < SOON_S  # about 1 s where nothing else runs


def test_uuid_that_no_base_uri_has(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str
) -> None:
    host = server.base_uri.split("/")[2]
    wrong = f"dserver://{host}/11111111-2222-3333-4444-555555555555"

    line = refused(current_user, "mount", wrong, mountpoint, token=token)

    assert "no base URI" in line


class OtherServer(BaseHTTPRequestHandler):
    """Answers /config/versions with what it is told, and nothing else."""

    versions: object = None

    def do_GET(self) -> None:
        known = self.path == "/config/versions"
        missing = {"code": 404, "status": "Not Found"}  # as flask-smorest says it
        body = json.dumps(self.versions if known else missing).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"versions": {"dservercore": "0.22.0"}}, "no signed-URL routes"),
        ({"hello": "world"}, "is not a dserver"),
        ("<html>", "is not a dserver"),
    ],
)
def test_server_that_cannot_serve_us(
    fuse: None, current_user: Account, mountpoint: Path, token: str, versions: object, said: str
) -> None:
    handler = type("Handler", (OtherServer,), {"versions": versions})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        uri = f"dserver://127.0.0.1:{other.server_address[1]}/s3/b"
        line = refused(current_user, "mount", uri, mountpoint, token=token)
        other.shutdown()

    assert said in line


def test_mount_point_that_cannot_be_one(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str
) -> None:
    def line(path: Path) -> str:
        return refused(current_user, "mount", server.base_uri, path, token=token)

    assert "does not exist" in line(mountpoint / "missing")
    (mountpoint / "file").touch()
    assert "not a directory" in line(mountpoint / "file")
    assert "not empty" in line(mountpoint)


def test_mount_point_in_use_is_refused_and_goes_on(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    with mounted(current_user, server.base_uri, token) as path:
        line = refused(current_user, "mount", server.base_uri, path, token=token)

        assert "mounted there already" in line
        assert (path / "trouble/data/hello.txt").read_bytes() == b"hello\n"


def test_fuse_that_is_not_installed_or_not_open(
    fuse: None,
    current_user: Account,
    ordinary_user: Account,
    server: ServerHandle,
    mountpoint: Path,
    token: str,
) -> None:
    line = refused(
        current_user, "mount", server.base_uri, mountpoint, token=token, PATH="/nonexistent"
    )
    assert "fusermount3" in line
    if os.geteuid() != 0:
        return
    device = Path("/dev/fuse")
    mode = device.stat().st_mode & 0o7777
    device.chmod(0o600)
    try:
        target = ordinary_user.home / "closed"
        ordinary_user.run("mkdir", "-p", target, check=True)
        line = refused(ordinary_user, "mount", server.base_uri, target, token=token)
    finally:
        device.chmod(mode)
    assert "/dev/fuse has mode 0600" in line
    assert "chmod 0666" in line
    without_device = f'{WITHOUT_MOUNTS} mount -t tmpfs none /dev && exec "$@"'
    hidden = current_user.run(
        *("unshare", "--mount", "sh", "-c", without_device, "sh"),
        *(current_user.python, "-m", "dserverfs", "mount", server.base_uri, mountpoint),
        env={"DSERVER_TOKEN": token},
    )
    assert "/dev/fuse does not exist" in hidden.stderr
    assert hidden.returncode == 1


def test_reason_that_fusermount_tells_is_told_by_who_waits_for_the_daemon() -> None:
    program = """
import sys
from dserverfs.base.errors import UsageError
from dserverfs.mount import launcher

def serve(ready_fd):
    for line in ("some words", "fusermount3: forbidden here", "dserverfs: m: cannot be mounted"):
        print(line, file=sys.stderr)
    return 1

try:
    launcher.start(serve)
except UsageError as error:
    print(error)
"""

    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert told.stdout == "m: cannot be mounted; fusermount3: forbidden here\n"


@pytest.mark.parametrize("option", ["nonsense", "umask=9", "uid=me"])
def test_unknown_option_is_refused(
    current_user: Account, server: ServerHandle, mountpoint: Path, option: str
) -> None:
    line = refused(current_user, "mount", "-o", option, server.base_uri, mountpoint)

    assert option in line


def test_umount_of_what_is_not_mounted(current_user: Account, mountpoint: Path) -> None:
    assert "no dserverfs is mounted" in refused(current_user, "umount", mountpoint)


# Afterwards


def test_killed_daemon_leaves_a_dead_mount_that_can_be_mounted_over(
    fuse: None, account: Account, server: ServerHandle, token: str, uri: str
) -> None:
    with mounted(account, server.base_uri, token, "--channel", "off") as path:
        pid = daemon_of(path)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        listed = account.run("ls", path)
        assert os.strerror(errno.ENOTCONN) in listed.stderr
        assert listed.stdout == ""

        again = account.dserverfs("mount", server.base_uri, path, env={"DSERVER_TOKEN": token})

        assert again.returncode == 0, again.stderr
        assert account.run("cat", path / "trouble/data/hello.txt").stdout == "hello\n"


@pytest.mark.parametrize("channel", ["off", "on"])
def test_mount_whose_daemon_was_killed_is_taken_away_by_umount(
    fuse: None, account: Account, server: ServerHandle, token: str, channel: str
) -> None:
    """With a channel the next daemon is just about to listen."""
    with mounted(account, server.base_uri, token, "--channel", channel) as path:
        pid = daemon_of(path)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)

        done = account.dserverfs("umount", path)

        assert done.returncode == 0, done.stderr
        assert find_mounted(path) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_unmounts_and_ends_on_a_signal(
    fuse: None, current_user: Account, server: ServerHandle, token: str, number: signal.Signals
) -> None:
    with mounted(current_user, server.base_uri, token) as path:
        pid = daemon_of(path)

        os.kill(pid, number)
        wait_for_end(pid)

        assert find_mounted(path) is None
        assert os.listdir(path) == []


def test_busy_mount_is_not_taken_away(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    with (
        mounted(current_user, server.base_uri, token) as path,
        (path / "trouble/data/hello.txt").open("rb") as file,
    ):
        done = current_user.dserverfs("umount", path)

        assert done.returncode == 1
        *stays, line = done.stderr.splitlines()
        assert line.startswith(f"dserverfs: {path}: is in use")
        # What other tests have staged for the same server.
        assert all(each.startswith("stays staged: ") for each in stays)
        assert file.read() == b"hello\n"


def test_foreground_mount_ends_with_its_terminal_command(
    fuse: None, current_user: Account, server: ServerHandle, mountpoint: Path, token: str, uri: str
) -> None:
    command = current_user.dserverfs_command("mount", "-f", server.base_uri, mountpoint)
    with current_user.spawn(*command, env={"DSERVER_TOKEN": token}) as process:
        assert process.stderr is not None
        said = ""
        while "mounted at" not in said:
            line = process.stderr.readline().decode()
            assert line, said
            said += line
        assert (mountpoint / "trouble/data/hello.txt").read_bytes() == b"hello\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LATE_S) == 0
    assert find_mounted(mountpoint) is None


def test_no_secret_reaches_log_or_process_title(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    log = current_user.home / "debug.log"
    with mounted(current_user, uri, token, "--log-level", "debug", "--log-file", str(log)) as path:
        assert (path / "data/hello.txt").read_bytes() == b"hello\n"
        title = Path(f"/proc/{daemon_of(path)}/cmdline").read_bytes().decode()

    written = log.read_text()
    assert "mounted at" in written
    for secret in (token, "X-Amz-Signature"):
        assert secret not in written
        assert secret not in title


def test_gone_server_hurts_only_what_is_not_known_yet(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    host, _, port = server.base_uri.split("/")[2].partition(":")
    with relay(host, int(port)) as way:
        relayed = uri.replace(f"{host}:{port}", f"127.0.0.1:{way.port}")
        with mounted(current_user, relayed, token) as path:
            assert (path / "data/hello.txt").read_bytes() == b"hello\n"

            way.cut()

            assert (path / "data/hello.txt").read_bytes() == b"hello\n"
            assert sorted(os.listdir(path / "data")) == ["hello.txt", "many", "more"]
            with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
                os.listdir(path / ".dtool/tags")


def test_two_hundred_stalled_reads_do_not_delay_what_is_known(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    with mounted(current_user, uri, token) as path, ThreadPoolExecutor(200) as pool:
        assert (path / "data/hello.txt").read_bytes() == b"hello\n"
        names = sorted(os.listdir(path / "data/many"))
        weed = weed_of(server)
        os.kill(weed, signal.SIGSTOP)
        try:
            reads = [pool.submit((path / "data/many" / name).read_bytes) for name in names]
            started = time.monotonic()
            assert sorted(os.listdir(path / "data/many")) == names
            assert (path / "data/more/data.bin").stat().st_size == 3_000_000
            assert (path / "data/hello.txt").read_bytes() == b"hello\n"
            assert time.monotonic() - started < SOON_S
            assert not any(read.done() for read in reads)
        finally:
            os.kill(weed, signal.SIGCONT)
        for name, read in zip(names, reads, strict=True):
            assert read.result(60) == ITEMS[f"many/{name}"]
