"""Tokens, passwords, keys and signed URLs: in no log, message, title, file or environment."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.mount_daemons import daemon_of
from tests.support.mounts import mounted, publish
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle

SIGNATURE = re.compile(rb"(Signature|Credential)(=|%3D)[0-9A-Za-z%]{16,}")


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    local = make_dataset(tmp_path_factory.mktemp("local"), "secrets", {"a": b"a" * 9000, "b": b"b"})
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


def secrets_of(server: ServerHandle) -> Mapping[str, bytes]:
    """Return each secret that a client or the server has, by what it is."""
    keys = (server.data / "store" / "s3.json").read_bytes()
    (secret_key,) = re.findall(rb'"secretKey": *"([^"]+)"', keys)
    return {
        "token": server.token.encode(),
        "password": (server.data / "password").read_bytes().strip(),
        "key of sessions": (server.data / "secret_key").read_bytes().strip(),
        "key of tokens": (server.data / "jwt_private.pem").read_bytes().splitlines()[1],
        "key of the store": secret_key,
        "token of the store": re.findall(
            rb'key = "([^"]+)"', (server.data / "store/config/security.toml").read_bytes()
        )[0],
    }


def found_in(content: bytes, server: ServerHandle) -> list[str]:
    found = [name for name, secret in secrets_of(server).items() if secret in content]
    return found + (["signed URL"] if SIGNATURE.search(content) else [])


def files_below(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith("mnt-")]
        # Sockets of daemons that were killed by other tests are there, too.
        yield from (path for name in files if (path := Path(directory, name)).is_file())


def processes() -> Iterator[Path]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            yield entry


def test_secrets_are_nowhere_after_all_kinds_of_work(
    fuse: None, ordinary_user: Account, server: ServerHandle, uri: str
) -> None:
    user, said = ordinary_user, b""
    log = user.home / "debug.log"
    password = (server.data / "password").read_text()
    wrong = f"{server.token[:-6]}AAAAAA"

    def note(done: subprocess.CompletedProcess[str]) -> None:
        nonlocal said
        said += f"{done.args} {done.stdout} {done.stderr}".encode()

    options = ("--log-level", "debug", "--log-file", str(log), "--freeze-delay", "manual")
    with mounted(user, server.base_uri, server.token, *options) as path:
        for name in ("a", "b"):
            user.run("cat", path / "secrets/data" / name, check=True)
        user.run("sh", "-c", f"echo 'x: 1' > {path}/secrets/README.yml", check=True)
        user.run("mkdir", path / "of-secrets", check=True)
        user.run("sh", "-c", f"echo new > {path}/of-secrets/item", check=True)
        note(user.dserverfs("freeze", path / "of-secrets"))
        note(user.dserverfs("status"))
        note(user.dserverfs("status", "--log-level", "debug", path))
        note(user.dserverfs("verify", path / "secrets"))
        titles = b"".join(
            (process / "cmdline").read_bytes()
            for process in processes()
            if (process / "cmdline").exists()
        )
    environment = {"DSERVER_TOKEN": wrong}
    note(user.dserverfs("whoami", server.base_uri.split("/")[2], env=environment))
    note(user.dserverfs("warm", uri, env=environment))
    login = ["login", server.base_uri.split("/")[2]]
    pasted = user.run(
        user.python,
        *("-m", "dserverfs", *login, "--token-stdin"),
        env={"XDG_CONFIG_HOME": str(user.home / "config")},
        input=server.token,
    )
    assert pasted.returncode == 0, pasted.stderr
    note(pasted)
    login_done = user.run(
        user.python,
        *("-m", "dserverfs", *login),
        env={"DSERVER_USERNAME": server.username, "XDG_CONFIG_HOME": str(user.home / "config")},
        input=password,
    )
    note(login_done)
    kept = user.home / "config/dserverfs/tokens" / login[1]
    assert kept.exists(), login_done.stderr

    written = log.read_bytes()
    assert b"mounted at" in written
    assert b" DEBUG " in written
    for content in (written, said, titles, server.data.with_name("server.log").read_bytes()):
        assert found_in(content, server) == []
        assert wrong.encode() not in content
    token_of_login = kept.read_bytes().strip()
    for file in files_below(user.home):
        content = file.read_bytes()
        assert found_in(content, server) == [], file
        assert file == kept or token_of_login not in content, file


def test_secrets_would_be_found(server: ServerHandle) -> None:
    for name, secret in secrets_of(server).items():
        assert len(secret) > 10
        assert found_in(b"said: " + secret + b".", server) == [name]
    url = "http://store/bucket/key?X-Amz-Credential=0123456789abcdef0123%2F20261129&X=1"
    assert found_in(url.encode(), server) == ["signed URL"]


def test_environment_of_the_store_has_no_secret(server: ServerHandle) -> None:
    environment = Path(f"/proc/{weed_of(server)}/environ").read_bytes()

    assert b"PATH=" in environment
    assert found_in(environment, server) == []
    assert not re.search(rb"(?m)(^|\0)(DSERVER|DTOOL|AWS)_", environment)


@pytest.fixture(scope="module", params=["false", "true"])
def daemon(
    fuse: None,
    ordinary_user: Account,
    server: ServerHandle,
    uri: str,
    request: pytest.FixtureRequest,
) -> Iterator[tuple[int, bool]]:
    """A daemon, and whether it was allowed to be debugged."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(
            mounted(ordinary_user, uri, server.token, env={"DSERVER_CORE_DUMPS": request.param})
        )
        yield daemon_of(path), request.param == "true"


def test_memory_of_the_daemon_is_for_nobody_unless_it_is_allowed(
    daemon: tuple[int, bool], ordinary_user: Account, server: ServerHandle
) -> None:
    pid, is_allowed = daemon
    for file in ("environ", "mem", "maps", "fd"):
        program = f"import os; os.listdir('/proc/{pid}/fd')"
        if file != "fd":
            program = f"open('/proc/{pid}/{file}', 'rb')"
        done = ordinary_user.run(ordinary_user.python, "-c", program)

        assert (done.returncode == 0) is is_allowed, done.stderr
        assert is_allowed or "PermissionError" in done.stderr
    limits = Path(f"/proc/{pid}/limits").read_text()
    (core,) = re.findall(r"Max core file size +(\S+)", limits)
    assert is_allowed or core == "0"


def test_memory_of_the_server_is_for_nobody(server: ServerHandle) -> None:
    pid = server.process.pid
    # What may not be dumped belongs to root, whoever runs it.
    assert (os.stat(f"/proc/{pid}/environ").st_uid == 0) or os.geteuid() != 0
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.findall(r"Max core file size +(\S+)", limits) == ["0"]
