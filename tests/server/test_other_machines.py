"""A server on one machine, and its users on another: hosts in network namespaces, real TLS."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from dserverfs.server.slow_clients import MAX_CONNECTIONS
from tests.support.accounts import Account
from tests.support.authority import Authority
from tests.support.hosts import Host, two_hosts
from tests.support.mount_daemons import wait_for
from tests.support.mounts import detach
from tests.support.servers import ServerHandle, encoded, running_server, upload

SERVER, ALSO_SERVER, CLIENT = "10.77.0.1", "10.77.0.3", "10.77.0.2"
PORT, STORE_PORT = 5000, 8333
SERVER_URL, STORE_URL = f"https://{SERVER}:{PORT}", f"https://{SERVER}:{STORE_PORT}"
NSENTER = shutil.which("nsenter") or "nsenter"


class Lab(NamedTuple):
    """The two machines, with the server of the first."""

    server: ServerHandle
    machine: Host  # the server's
    desk: Host
    user: Account  # at the desk
    authority: Authority
    files: tuple[Path, Path]  # of the server's certificate

    def dserverfs(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.user.dserverfs(*arguments, timeout_s=120)

    def serials(self) -> set[str]:
        """Return which certificates server and store show now."""
        found = set()
        context = ssl.create_default_context(cafile=self.authority.file)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with self.desk.entered():
            for port in (PORT, STORE_PORT):
                with (
                    socket.create_connection((SERVER, port), timeout=30) as connection,
                    context.wrap_socket(connection) as secured,
                ):
                    found.add(ssl.DER_cert_to_PEM_cert(secured.getpeercert(True) or b""))
        return found

    def install(self, certificate: Path, key: Path) -> None:
        """Replace the server's certificate, and return when it is in use."""
        shutil.copyfile(key, self.files[1])
        shutil.copyfile(certificate, self.files[0])
        wanted = {certificate.read_text()}
        wait_for(lambda: self.serials() == wanted, "the new certificate")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts((SERVER, ALSO_SERVER), (CLIENT,)) as hosts:
        yield hosts


def at(host: Host, account: Account, home: Path, **settings: str) -> Account:
    """Return the account on a host, with a home there."""
    home.mkdir()
    environment = {**account.environment, "HOME": str(home), **settings}
    return dataclasses.replace(account, home=home, environment=environment, _become=host.prefix)


@pytest.fixture(scope="module")
def lab(
    hosts: tuple[Host, Host], current_user: Account, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    machine, desk = hosts
    scratch = tmp_path_factory.mktemp("lab")
    authority = Authority(scratch)
    files = authority.certify("server", SERVER, ALSO_SERVER)
    user = at(desk, current_user, scratch / "home", DSERVER_CA_FILE=str(authority.file))
    with running_server(
        scratch / "data",
        *("--host", "0.0.0.0", "--port", str(PORT), "--public-url", SERVER_URL),
        *("--store-host", "0.0.0.0", "--tls-cert", str(files[0]), "--tls-key", str(files[1])),
        prefix=[NSENTER, *machine.prefix[1:]],
    ) as server:
        yield Lab(server, machine, desk, user, authority, files)


@pytest.fixture(scope="module")
def mounted(lab: Lab, fuse: None) -> Iterator[Path]:
    """What the command that the server prints mounts at the desk."""
    command = lab.server.for_others["on another machine"]
    function = f'dserverfs() {{ {shlex.quote(str(lab.user.python))} -m dserverfs "$@"; }}'
    password = (lab.server.data / "password").read_text()
    path = lab.user.home / "datasets"
    try:
        done = lab.user.run("sh", "-c", f"{function}; {command}", input=password, timeout_s=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        yield path
    finally:
        lab.dserverfs("umount", path)
        detach(path)


def freeze(lab: Lab, mounted: Path, name: str, contents: dict[str, bytes]) -> str:
    """Make a dataset in the mount; return its URI."""
    for relpath, content in contents.items():
        (mounted / name / relpath).parent.mkdir(parents=True, exist_ok=True)
        (mounted / name / relpath).write_bytes(content)
    done = lab.dserverfs("freeze", mounted / name)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_command_that_serve_prints_mounts_it_at_another_machine(lab: Lab, mounted: Path) -> None:
    assert lab.server.url == SERVER_URL
    assert lab.server.for_others["signed URLs"] == STORE_URL
    contents = {"large": os.urandom(9_000_000), "a/small": b"small", "empty": b""}

    uri = freeze(lab, mounted, "measured", contents)

    assert uri.startswith(f"dserver://{SERVER}:{PORT}/s3/datasets/")
    assert lab.dserverfs("cache", "clear").returncode == 0
    assert "measured" in os.listdir(mounted)
    for relpath, content in contents.items():
        assert (mounted / "measured" / "data" / relpath).read_bytes() == content
    verified = lab.dserverfs("verify", uri)
    assert verified.returncode == 0, verified.stderr
    doctor = lab.dserverfs("doctor", f"{SERVER}:{PORT}")
    assert "signed URL: the store gave" in doctor.stdout


def test_two_addresses_lead_to_the_server_and_both_tell_of_one(lab: Lab, mounted: Path) -> None:
    uri = freeze(lab, mounted, "twice", {"x": b"x"})
    stored = f"s3://datasets/{uri.rpartition('/')[2]}"
    texts = []

    with lab.desk.entered(), requests.Session() as session, requests.Session() as by_url:
        for each in (session, by_url):
            each.verify, each.trust_env = str(lab.authority.file), False
        session.headers["Authorization"] = f"Bearer {lab.server.token}"
        for address in (SERVER, ALSO_SERVER):
            for headers in ({}, {"Host": "evil.example"}, {"X-Forwarded-Host": "evil.example"}):
                url = f"https://{address}:{PORT}/signed-urls"
                read = session.get(f"{url}/dataset/{encoded(stored)}", headers=headers, timeout=30)
                link = session.post(f"{url}/publish/{encoded(stored)}", headers=headers, timeout=30)
                read.raise_for_status()
                link.raise_for_status()
                assert read.json()["manifest_url"].startswith(f"{STORE_URL}/datasets/")
                assert by_url.get(read.json()["manifest_url"], timeout=30).ok
                assert link.json()["url"].startswith(f"{SERVER_URL}/published/")
                texts += [read.text, link.text]

    assert [text for text in texts if "evil" in text or ALSO_SERVER in text] == []


def test_certificate_is_renewed_under_a_mount(lab: Lab, mounted: Path) -> None:
    content = os.urandom(3_000_000)
    uri = freeze(lab, mounted, "before", {"x": content})

    lab.install(*lab.authority.certify("renewed", SERVER))

    assert lab.dserverfs("cache", "clear").returncode == 0
    assert lab.dserverfs("verify", uri).returncode == 0
    assert (mounted / "before" / "data" / "x").read_bytes() == content
    freeze(lab, mounted, "after", {"x": content})


def test_expired_certificate_is_one_line(lab: Lab) -> None:
    try:
        lab.install(*lab.authority.certify("expired", SERVER, days=-1))
        said = lab.dserverfs("whoami", f"{SERVER}:{PORT}")
    finally:
        lab.install(*lab.authority.certify("good", SERVER))

    assert said.returncode == 1
    assert said.stderr.count("\n") == 1
    assert "its certificate is not accepted: it has expired" in said.stderr
    log = lab.server.data.with_name("data.log").read_text()
    assert "clients refuse it" in log


def test_hundreds_that_never_begin_to_speak_tls_keep_nobody_out(lab: Lab) -> None:
    with lab.desk.entered(), contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 20):
            stack.enter_context(socket.create_connection((SERVER, PORT), timeout=30))
        answer = requests.get(
            f"{SERVER_URL}/config/health", verify=str(lab.authority.file), timeout=30
        )

    assert answer.status_code == 200


def test_others_reach_two_ports_and_one_that_wants_a_certificate_of_the_store(lab: Lab) -> None:
    listening = set()
    for table in ("tcp", "tcp6"):
        lines = Path(f"/proc/{lab.server.process.pid}/net/{table}").read_text().splitlines()[1:]
        for fields in map(str.split, lines):
            host, _, port = fields[1].rpartition(":")
            if fields[3] == "0A" and host not in ("0100007F", f"{'0' * 24}01000000"):
                listening.add(int(port, 16))

    (of_grpc,) = listening - {PORT, STORE_PORT}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        lab.desk.entered(),
        socket.create_connection((SERVER, of_grpc), timeout=30) as connection,
        context.wrap_socket(connection) as secured,
        pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
    ):
        secured.recv(1)


def test_store_that_others_cannot_reach_is_told_by_serve_and_doctor(
    hosts: tuple[Host, Host],
    current_user: Account,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, desk = hosts
    authority = Authority(tmp_path)
    certificate, key = authority.certify("server", SERVER)
    user = at(desk, current_user, tmp_path / "home", DSERVER_CA_FILE=str(authority.file))
    with running_server(
        tmp_path / "data",
        *("--host", SERVER, "--port", "5001"),
        *("--tls-cert", str(certificate), "--tls-key", str(key)),
        prefix=[NSENTER, *machine.prefix[1:]],
    ) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
        with machine.entered():
            upload(server, {"x": b"x"})
        said = user.dserverfs(
            *("doctor", f"https://{SERVER}:5001"), env={"DSERVER_TOKEN": server.token}
        )

    assert said.returncode == 1
    line = next(each for each in said.stdout.splitlines() if " signed URL: " in each)
    assert line.startswith("problem  signed URL: the store at 127.0.0.1:")
    assert "cannot be reached" in line
    assert "--store-host" in line
    log = (tmp_path / "data.log").read_text()
    assert "other machines see the datasets and cannot read them; give --store-host" in log
