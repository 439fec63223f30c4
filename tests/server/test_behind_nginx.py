"""The page about groups has a configuration of nginx: a server and its store behind it."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from dserverfs.server.routes.guesses import MAX_OF_PAIR
from tests.support import pages
from tests.support.accounts import Account
from tests.support.authority import Authority
from tests.support.child_processes import spawn
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, encoded, running_server

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
pytestmark = pytest.mark.skipif(
    not os.access(NGINX, os.X_OK), reason="nginx is not installed; it is in Debian's nginx-light"
)


class Behind(NamedTuple):
    """A server behind a proxy, both of this machine."""

    server: ServerHandle
    authority: Authority
    store_port: int  # of the proxy


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def configuration(directory: Path, values: Mapping[str, str]) -> str:
    """Return what the page says, with what is this test's own in the place of its names."""
    page = (pages.PACKAGE / "docs/group.rst").read_text()
    block = page[page.index("    server {\n") : page.index("``--trusted-proxy ADDRESS``")]
    for there, here in values.items():
        assert there in block
        block = block.replace(there, here)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {directory / kind};" for kind in kinds)
    return (
        f"user root; daemon off; worker_processes 1;\n"
        f"pid {directory / 'nginx.pid'}; error_log {directory / 'error.log'};\n"
        f"events {{ worker_connections 256; }}\n"
        f"http {{ access_log off; {paths}\n{block}\n}}\n"
    )


def listens(port: int) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=LATE_S),
    ):
        return True
    return False


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    directory = tmp_path_factory.mktemp("nginx")
    directory.chmod(0o755)  # nginx works as another user
    authority = Authority(directory)
    certificate, key = authority.certify("proxy", "127.0.0.1")
    of_server, of_store, server_port, store_port = free_ports(4)
    values = {
        "proxy_pass http://127.0.0.1:5000;": f"proxy_pass http://127.0.0.1:{server_port};",
        "proxy_pass http://127.0.0.1:8333;": f"proxy_pass http://127.0.0.1:{store_port};",
        "server_name data.example.org;": f"listen 127.0.0.1:{of_server} ssl;",
        "server_name store.example.org;": f"listen 127.0.0.1:{of_store} ssl;",
        "listen 443 ssl;": "",
        **{f"/etc/nginx/tls/{name}.pem": str(certificate) for name in ("data", "store")},
        **{f"/etc/nginx/tls/{name}.key": str(key) for name in ("data", "store")},
    }
    (directory / "nginx.conf").write_text(configuration(directory, values))
    command = [NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf")]
    with (
        running_server(
            directory / "data",
            *("--port", str(server_port), "--public-url", f"https://127.0.0.1:{of_server}"),
            *("--store-url", f"https://127.0.0.1:{of_store}", "--store-port", str(store_port)),
            *("--trusted-proxy", "127.0.0.1"),
        ) as server,
        spawn(command) as nginx,
    ):
        wait_for(lambda: nginx.poll() is not None or listens(of_store), "nginx")
        assert nginx.poll() is None, (directory / "error.log").read_text()
        yield Behind(server, authority, of_store)


def test_mount_reads_and_writes_through_the_proxy(
    behind: Behind, current_user: Account, fuse: None
) -> None:
    contents = {"large": os.urandom(9_000_000), "ü b/small +": b"small"}
    environment = {"DSERVER_CA_FILE": str(behind.authority.file), "DSERVER_PROTOCOL": "https"}
    with mounted(
        current_user, behind.server.base_uri, behind.server.token, env=environment
    ) as mount:
        for relpath, content in contents.items():
            path = mount / "through" / "data" / relpath
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        frozen = current_user.dserverfs("freeze", mount / "through")
        assert frozen.returncode == 0, frozen.stderr
        current_user.dserverfs("cache", "clear", check=True)
        for relpath, content in contents.items():
            assert (mount / "through" / "data" / relpath).read_bytes() == content

        uri = f"s3://datasets/{frozen.stdout.strip().rpartition('/')[2]}"
        with requests.Session() as session:
            session.verify, session.trust_env = str(behind.authority.file), False
            session.headers["Authorization"] = f"Bearer {behind.server.token}"
            url = f"{behind.server.url}/signed-urls/dataset/{encoded(uri)}"
            signed = session.get(url, timeout=30).json()["manifest_url"]
            assert signed.startswith(f"https://127.0.0.1:{behind.store_port}/datasets/")


def test_wrong_passwords_are_counted_by_the_client_that_the_proxy_names(behind: Behind) -> None:
    login = {"username": "nobody-behind", "password": "wrong"}

    def guess(forwarded: str) -> int:
        answer = requests.post(
            f"{behind.server.url}/token",
            json=login,
            headers={"X-Forwarded-For": forwarded},
            verify=str(behind.authority.file),
            timeout=30,
        )
        return answer.status_code

    # The proxy adds its client, 127.0.0.1, which is trusted, too: the one before it counts.
    assert [guess("192.0.2.1") for _ in range(MAX_OF_PAIR)] == [401] * MAX_OF_PAIR
    assert guess("192.0.2.1") == 429
    assert guess("192.0.2.2") == 401


def test_body_that_is_too_large_is_refused_through_the_proxy(behind: Behind) -> None:
    host, _, port = behind.server.url.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cafile=behind.authority.file)
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/token", b"x" * 100_000)
        # nginx says 502 if the refusal, and the connection's end, come while it still sends.
        assert connection.getresponse().status in (413, 502)
