"""A real `dserverfs serve` for tests, and what a client of it needs to say.

No process outlives the test run: the server is killed by the kernel when the
thread that started it ends, and its own child with it.
"""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import requests

from dserverfs.server.store import die_with_parent
from tests.support.patience import LATE_S
from tests.support.postgresql import address_for_new_server

START_TIMEOUT_S = 180
SOURCES = Path(__file__).parents[2]


@dataclass(frozen=True)
class ServerHandle:
    url: str
    base_uri: str  # dserver://HOST:PORT/s3/BUCKET
    token_file: Path
    process: subprocess.Popen[str]
    for_others: Mapping[str, str]  # what other machines are told, if it is for them

    @property
    def backend_uri(self) -> str:
        return f"s3://{self.base_uri.rpartition('/')[2]}"

    @property
    def data(self) -> Path:
        return self.token_file.parent

    @property
    def username(self) -> str:
        return (self.data / "username").read_text()

    def token_for(self, username: str, **claims: Any) -> str:
        """Return a token as this server signs them, for any user and with any claims."""
        key = (self.data / "jwt_private.pem").read_text()
        return jwt.encode({"sub": username, **claims}, key, algorithm="RS256")

    def add_base_uri(self, *, search: Sequence[str] = (), register: Sequence[str] = ()) -> str:
        """Register a base URI of a new bucket, and users with these rights on it."""
        for username in {*search, *register} - {self.username}:
            self.request("PUT", f"/users/{username}", {}).raise_for_status()
        base_uri = f"s3://bucket-{uuid.uuid4()}"
        self.request(
            "PUT",
            f"/base-uris/{encoded(base_uri)}",
            {
                "users_with_search_permissions": list(search),
                "users_with_register_permissions": list(register),
            },
        ).raise_for_status()
        return base_uri

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def request(
        self, method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> requests.Response:
        """Ask the server, as its first user unless another token is given ("" for none)."""
        token = self.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return requests.request(method, self.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self.request("POST", path, body, **options)


def serve_command(
    data: Path, *options: str, prefix: Sequence[str] = (), module: str = "dserverfs"
) -> list[str]:
    """Return the command for `serve`, under the guard that ends it with this process.

    `prefix` is a program, with its path, that becomes the rest of the command; `module` is one
    that does as `dserverfs` does.
    """
    return [
        *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
        *prefix,
        *(sys.executable, "-m", module, "serve", "--data", str(data), *options),
    ]


def serve_environment(sources: Path = SOURCES) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(sources)}


@contextmanager
def running_server(
    data: Path,
    *options: str,
    sources: Path = SOURCES,
    prefix: Sequence[str] = (),
    module: str = "dserverfs",
) -> Iterator[ServerHandle]:
    """Run `dserverfs serve` of some version's sources on a free port until the end of the block."""
    log_path = data.with_name(data.name + ".log")
    if sources == SOURCES and not data.exists() and (address := address_for_new_server()):
        options = (*options, "--database", address)
    with (
        open(log_path, "ab") as log,
        subprocess.Popen(
            serve_command(data, "--port", "0", *options, prefix=prefix, module=module),
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=sources,
            env=serve_environment(sources),
            text=True,
        ) as process,
    ):
        try:
            lines = [line.partition(": ") for line in _first_lines(process, log_path)]
            url, base_uri, token_file = (told for _, _, told in lines[:3])
            for_others = {name: told for name, _, told in lines[3:]}
            yield ServerHandle(url, base_uri, Path(token_file), process, for_others)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(LATE_S)
                except subprocess.TimeoutExpired:
                    process.kill()


def _first_lines(process: subprocess.Popen[str], log: Path) -> list[str]:
    """Return the lines that are printed when it is ready; fails with the log without them."""
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    text = ""
    while text.count("\n") < (3 if "://127.0.0.1:" in text.partition("\n")[0] else 5):
        ready, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
        part = os.read(process.stdout.fileno(), 4096).decode() if ready else ""
        if not part:
            raise AssertionError(f"serve did not start: {log.read_text()}")
        text += part
    return text.splitlines()


def encoded(uri: str) -> str:
    return quote(uri, safe="")


def new_uuid() -> str:
    return str(uuid.uuid4())


def upload_body(contents: Mapping[str, bytes], **others: Any) -> dict[str, Any]:
    """Return the body that announces a new dataset with these items."""
    return {
        "uuid": new_uuid(),
        "name": "a-dataset",
        "creator_username": "grumpy",
        "frozen_at": 1700000000.5,
        "hash_function": "md5sum_hexdigest",
        "items": [
            {
                "relpath": relpath,
                "size_in_bytes": len(content),
                "hash": hashlib.md5(content).hexdigest(),
                "utc_timestamp": 1600000000.25,
            }
            for relpath, content in contents.items()
        ],
        "tags": [],
        "annotations": {},
        "overlays": {},
        **others,
    }


def put_items(begun: Mapping[str, Any], contents: Mapping[str, bytes], readme: bytes = b"") -> None:
    """Put the README and these items to the URLs of an answer of `/signed-urls/upload`."""
    with requests.Session() as session:
        session.trust_env = False  # no proxies; but a certificate authority of the test's
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE", True)
        session.put(begun["upload_urls"]["readme"], data=readme, timeout=60).raise_for_status()
        for item in begun["upload_urls"]["items"].values():
            if item["relpath"] in contents:
                session.put(
                    item["url"],
                    data=contents[item["relpath"]],
                    headers=item["headers"],
                    timeout=60,
                ).raise_for_status()


def begin(
    server: ServerHandle, body: Mapping[str, Any], base_uri: str | None = None
) -> dict[str, Any]:
    """Begin an upload and return the answer."""
    path = f"/signed-urls/upload/{encoded(base_uri or server.backend_uri)}"
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    begun: dict[str, Any] = answer.json()
    return begun


def complete(server: ServerHandle, uri: str) -> requests.Response:
    return server.post("/signed-urls/upload-complete", {"uri": uri})


def upload(
    server: ServerHandle,
    contents: Mapping[str, bytes],
    *,
    readme: bytes = b"",
    base_uri: str | None = None,
    **others: Any,
) -> str:
    """Upload and complete a dataset; return its URI."""
    begun = begin(server, upload_body(contents, **others), base_uri)
    put_items(begun, contents, readme)
    done = complete(server, begun["uri"])
    assert done.status_code == 200, done.text
    uri: str = done.json()["uri"]
    return uri
