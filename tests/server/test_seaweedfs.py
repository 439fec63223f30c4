"""What `weed` is to others of the same machine, and what it is started with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jwt
import pytest
import requests

from dserverfs.base.errors import UsageError
from dserverfs.server.store import seaweedfs
from dserverfs.server.store.weed_config import WeedConfig
from tests.support.patience import LATE_S
from tests.support.server_store import weed_of
from tests.support.servers import ServerHandle, running_server, upload

CONTENT = b"nobody else's"
EARLIER_SECURITY = '[jwt.signing]\nkey = "x"\n'


class StoredFile(NamedTuple):
    """An object as the volume server knows it."""

    url: str
    file_id: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    """A server whose path is longer than a socket's, and whose last ports others have."""
    data = tmp_path_factory.mktemp("x" * 120) / "data"
    port = seaweedfs.usable_ports({})["master.port.grpc"]
    ports = dict.fromkeys(seaweedfs._PORTS, port)
    (data / "store" / "config").mkdir(parents=True)
    (data / "version").write_text("dserverfs server 1\n")
    (data / "store" / "ports.json").write_text(json.dumps(ports))
    (data / "store" / "config" / "security.toml").write_text(EARLIER_SECURITY)
    # Cannot be unlinked, as another user's socket cannot.
    in_the_way = seaweedfs.grpc_sockets(ports)[0]
    in_the_way.mkdir()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("WEED_JWT_SIGNING_READ_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "known")
            with running_server(data) as server:
                yield server
    finally:
        in_the_way.rmdir()


def ports_of(server: ServerHandle) -> dict[str, int]:
    ports: dict[str, int] = json.loads((server.data / "store" / "ports.json").read_text())
    return ports


@pytest.fixture(scope="module")
def stored(served: ServerHandle) -> StoredFile:
    """An item of a dataset, found in the files of the volumes as its owner could."""
    upload(served, {"secret": CONTENT})
    for data in (served.data / "store" / "data").glob("*.dat"):
        content = data.read_bytes()
        index = data.with_suffix(".idx").read_bytes()
        for key, offset, _, size in struct.iter_unpack(">QIBi", index):  # of weed 8000GB
            needle = content[offset * 8 :][: 16 + size]
            if CONTENT in needle:
                cookie = needle[:4].hex()
                number = data.stem.rpartition("_")[2]
                file_id = f"{number},{key:x}{cookie}"
                port = ports_of(served)["volume.port"]
                return StoredFile(f"http://127.0.0.1:{port}/{file_id}", file_id)
    raise AssertionError("no volume has the item")


def token_for(server: ServerHandle, file_id: str, section: str) -> str:
    """Return a token as the parts of `weed` sign them for each other."""
    text = (server.data / "store" / "config" / "security.toml").read_text()
    key = text.partition(f"[{section}]")[2].partition('"')[2].partition('"')[0]
    return jwt.encode({"fid": file_id, "exp": time.time() + 60}, key, algorithm="HS256")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_volumes_ask_for_a_token(served: ServerHandle, stored: StoredFile, method: str) -> None:
    wrong = token_for(served, "1,1", "jwt.signing.read")
    for headers in ({}, {"Authorization": f"Bearer {wrong}"}):
        answer = requests.request(method, stored.url, data=b"x", headers=headers, timeout=LATE_S)
        assert answer.status_code == 401

    right = {"Authorization": f"Bearer {token_for(served, stored.file_id, 'jwt.signing.read')}"}
    assert requests.get(stored.url, headers=right, timeout=LATE_S).content == CONTENT


def test_master_and_filer_answer_nothing(served: ServerHandle) -> None:
    ports = ports_of(served)
    filer = f"http://127.0.0.1:{ports['filer.port']}"
    for answer in (
        requests.get(f"{filer}/", timeout=LATE_S),
        requests.get(f"{filer}/buckets/datasets/", timeout=LATE_S),
        requests.put(f"{filer}/buckets/datasets/evil", data=b"x", timeout=LATE_S),
        requests.delete(f"{filer}/buckets/datasets?recursive=true", timeout=LATE_S),
    ):
        assert answer.status_code == 404

    refusing = {name for name, port in ports.items() if refuses_strangers(port)}
    assert refusing == {"master.port", *(name for name in ports if name.endswith(".grpc"))}


@pytest.mark.parametrize("path", ["/", "/datasets", "/datasets?versioning", "/.iceberg/v1/config"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_s3_asks_for_a_signature(served: ServerHandle, method: str, path: str) -> None:
    url = f"http://127.0.0.1:{ports_of(served)['s3.port']}{path}"

    answer = requests.request(method, url, data=b"Action=ListUsers&Version=1", timeout=LATE_S)

    assert answer.status_code in (403, 405)


def refuses_strangers(port: int) -> bool:
    """Return whether a server wants TLS and a certificate of its clients."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", port), timeout=LATE_S) as connection:
        try:
            with context.wrap_socket(connection) as secured:
                secured.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                return not secured.recv(1)
        except ssl.SSLError as error:
            return "CERTIFICATE_REQUIRED" in str(error)
        except ConnectionResetError:
            return True


def test_all_that_listens_is_known(served: ServerHandle) -> None:
    """Whatever else `weed` opens has to be looked at first."""
    weed = weed_of(served)
    inodes = {os.readlink(f"/proc/{weed}/fd/{number}") for number in os.listdir(f"/proc/{weed}/fd")}
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{weed}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    paths = set()
    for line in Path(f"/proc/{weed}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if len(fields) == 8 and f"socket:[{fields[6]}]" in inodes:
            paths.add(Path(fields[7]))

    assert ports == set(ports_of(served).values())
    assert paths == {
        *seaweedfs.grpc_sockets(ports_of(served)),
        Path("../filer.sock"),
        Path("../s3.sock"),
    }
    for path in seaweedfs.grpc_sockets(ports_of(served)):
        assert path.stat().st_mode & 0o077 == 0


def test_environment_does_not_reach_the_store(served: ServerHandle) -> None:
    """It would replace what security.toml says, or add an identity to S3's."""
    assert b"known" not in Path(f"/proc/{weed_of(served)}/environ").read_bytes()


def test_directory_of_an_earlier_version_gets_what_this_one_shuts(tmp_path: Path) -> None:
    config = WeedConfig(tmp_path)
    config.prepare()
    before = config.credentials()
    security = tmp_path / "config" / "security.toml"
    security.write_text(EARLIER_SECURITY)

    config.prepare()

    assert "[jwt.signing.read]" in security.read_text()
    assert config.credentials() == before


def test_ports_whose_socket_another_user_has_are_not_taken() -> None:
    ports = seaweedfs.usable_ports({})
    path = seaweedfs.grpc_sockets(ports)[0]
    path.mkdir()
    try:
        seaweedfs.remove_sockets(ports)
        assert not seaweedfs.ports_are_free(ports)
        assert seaweedfs.usable_ports(ports) != ports
    finally:
        path.rmdir()
    assert seaweedfs.ports_are_free(ports)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that is all of PATH, on a Python that has no weed."""

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def test_weed_of_the_package_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weed").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))

    assert seaweedfs.find_weed() != str(tmp_path / "weed")


def test_without_weed_says_what_to_install(without_package: Path) -> None:
    with pytest.raises(UsageError, match=r"not installed; run: pip install 'dserverfs\[server\]'"):
        seaweedfs.find_weed()


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("version 8000GB 4.48 pypi linux amd64", None),
        ("version 30GB 5.00 bcce8d16 linux amd64", None),
        ("version 30GB 4.30 bcce8d16 linux amd64", "is weed 4.30, and 4.48 or later is needed"),
        ("version 30GB 3.99 bcce8d16 linux amd64", "is weed 3.99, and"),
        ("no weed at all", "is weed of an unknown version, and"),
        ("", "is weed of an unknown version, and"),
    ],
)
def test_weed_on_path_is_taken_if_it_is_new_enough(
    without_package: Path, said: str, refused: str | None
) -> None:
    weed = without_package / "weed"
    weed.write_text(f"#!/bin/sh\necho '{said}'\n")
    weed.chmod(0o755)

    if refused is None:
        assert seaweedfs.find_weed() == str(weed)
    else:
        with pytest.raises(UsageError, match=refused):
            seaweedfs.find_weed()


def test_store_is_sure_of_what_it_has_since_its_first_start_after_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.5)
    first = seaweedfs.sure_since_s(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 2000.5)
    again = seaweedfs.sure_since_s(tmp_path)
    monkeypatch.setattr(seaweedfs, "boot_id", lambda: "another")
    after_a_boot = seaweedfs.sure_since_s(tmp_path)

    assert (first, again, after_a_boot) == (1000.0, 1000.0, 2000.0)
