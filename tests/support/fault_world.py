"""A real dserver and store with fronts before them, a hurried mount, and commands, for faults.

Each `Place` is a base URI with a dataset of its own, all below one mount of the server, so
that many faults can be tried beside each other: the plan of a front says which place is hit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dserverfs.base.mountinfo import find_mounted
from dserverfs.server.web import WebServer
from tests.support.accounts import Account, with_channel
from tests.support.child_processes import spawn
from tests.support.front import Front, front
from tests.support.mounts import detach
from tests.support.patience import LATE_S
from tests.support.server_app import AppClient, put_all
from tests.support.servers import ServerHandle, encoded, new_uuid, upload_body
from tests.support.staged_states import staged_states

KIB = 1024
MIB = 1024 * KIB
LARGE_BYTES = 2 * MIB + 5
PARTS_FROM = 3 * MIB  # for one PUT; the server has larger items sent in parts
README = b"---\ndescription: of faults\n"
RECOVERY_S = LATE_S

Constants = Mapping[str, Mapping[str, Any]]

# The limits of a mount in seconds that a test can wait for, in the same order as the real ones.
HURRIED: Constants = {
    "dserverfs.base.retry": {
        "FIRST_WAIT_S": 0.02,
        "MAX_WAIT_S": 0.2,
        "MAX_RETRY_AFTER_S": 0.2,
        "STALL_S": 2.5,
        "FIRST_STALL_S": 2.0,
    },
    "dserverfs.remote.dserver_http": {"METADATA_TIMEOUT_S": 8.0},
    "dserverfs.remote.upload_api": {"UPLOAD_TIMEOUT_S": 9.0, "PARTS_TIMEOUT_S": 9.0},
    "dserverfs.remote.puts": {"_ANSWER_FACTOR": 1},
    "dserverfs.remote.many_gets": {"STALL_TIMEOUT_S": 1.0, "OBJECT_TIMEOUT_S": 3.0},
    "dserverfs.mount.waiting": {
        "METADATA_TIMEOUT_S": 8.0,
        "LOAD_TIMEOUT_S": 16.0,
        "METADATA_THREADS": 200,
        "OTHER_THREADS": 64,
    },
    "dserverfs.reading.block_reader": {"READ_TIMEOUT_S": 12.0},
    "dserverfs.reading.stored_items": {"RANGE_TIMEOUT_S": 12.0},
    "dserverfs.reading.verification": {"COMPARE_TIMEOUT_S": 12.0},
    "dserverfs.reading.pending_blocks": {"FAILURE_KEPT_S": 0.05},
    "dserverfs.reading.block_filling": {"DEMAND_THREADS": 64, "AHEAD_THREADS": 16},
    "dserverfs.catalogue.refreshed": {"RETRY_S": 0.1, "COMMAND_WAIT_S": 8.0},
    "dserverfs.writing.freezer": {"JOBS": 32},
    "dserverfs.writing.freeze_schedule": {"RETRY_S": (0.3, 1.0)},
    "dserverfs.writing.edits.sender": {"SENDERS": 32, "RETRY_S": (0.3, 1.0)},
}


class Failed(Exception):
    """A command did not end with 0; the message is what it said."""


class _Quiet:
    def wake(self) -> None:
        """Nobody waits for the server's faults: the requests fail."""


@dataclasses.dataclass
class Place:
    """A base URI, its directory in the mount, and a dataset in it."""

    world: World
    bucket: str
    dataset: str  # its uuid
    contents: Mapping[str, bytes]

    @property
    def base_uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def uri(self) -> str:
        return f"{self.world.server_uri}/s3/{self.bucket}"

    @property
    def dataset_uri(self) -> str:
        return f"{self.uri}/{self.dataset}"

    @property
    def path(self) -> Path:
        return self.world.mount / "s3" / self.bucket

    @property
    def dataset_path(self) -> Path:
        return self.path / "read"

    def scratch(self, name: str) -> Path:
        """Return a directory of this place and name outside of the mount."""
        return self.world.directory / self.bucket / name


class World:
    """All that cells share. Thread-safe but for `make_place`."""

    def __init__(
        self,
        account: Account,
        directory: Path,
        app: AppClient,
        mount: Path,
        before_server: Front,
        before_store: Front,
        jobs: Jobs,
    ) -> None:
        self._account = account
        self.directory = directory
        self.app = app
        self.mount = mount
        self.fronts = {"server": before_server, "store": before_store}
        self.jobs = jobs
        self.token = app.token("grumpy")
        self._lock = threading.Lock()

    @property
    def server_uri(self) -> str:
        return f"dserver://localhost:{self.fronts['server'].port}"

    def make_place(self, name: str, contents: Mapping[str, bytes] | None = None) -> Place:
        """Make a base URI with a dataset, before the mount looks."""
        bucket = f"{name}-{new_uuid()[:8]}"
        base_uri = f"s3://{bucket}"
        self.app.add_base_uri(base_uri)
        self.app.grant("grumpy", search=True, register=True, base_uri=base_uri)
        contents = contents or {
            "a/signed": random.randbytes(3000),
            "b/small": random.randbytes(3001),
            "c/large": random.randbytes(LARGE_BYTES),
            "d/part-of-it": random.randbytes(3002),
        }
        uri = self._upload(base_uri, contents)
        return Place(self, bucket, uri.rpartition("/")[2], contents)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[subprocess.Popen[bytes]]:
        """Mount the server, by way of its front; yield the daemon."""
        directory = self.directory
        command = _hurried(
            self._account,
            directory,
            *with_channel(("mount", "--foreground", "--freeze-delay", "manual")),
            *("--cache-dir", directory / "cache", "--staging-dir", directory / "staging"),
            *("--log-file", directory / "log", self.server_uri, self.mount),
        )
        environment = _environment(self._account, self.app)
        with spawn(command, env=environment, cwd=directory) as daemon:
            try:
                wait_until(lambda: find_mounted(self.mount) or daemon.poll(), "mounted")
                assert daemon.poll() is None
                yield daemon
            finally:
                detach(self.mount)
        assert "a fault of ours" not in (directory / "log").read_text()

    def _upload(self, base_uri: str, contents: Mapping[str, bytes]) -> str:
        body = upload_body(contents, name="read", tags=["tagged"], annotations={"n": 5})
        begun = self.app.post(f"/signed-urls/upload/{encoded(base_uri)}", body).json
        put_all(begun, contents, README)
        uri: str = begun["uri"]
        assert self.app.post("/signed-urls/upload-complete", {"uri": uri}).status_code == 200
        return uri

    def registered(self, base_uri: str, name: str) -> dict[str, str] | None:
        """Return the MD5 of each item of a dataset, by relpath, as the store has them.

        None if no dataset has that name.
        """
        with self._lock:  # the test client is one
            listed = self.app.post("/uris", {"base_uris": [base_uri]}).json
            uris = [each["uri"] for each in listed if each["name"] == name]
            if not uris:
                return None
            manifest = self.app.get(f"/manifests/{encoded(uris[0])}").json
        bucket, _, uuid = uris[0].removeprefix("s3://").partition("/")
        found = {}
        for identifier, entry in manifest["items"].items():
            key = f"{uuid}/data/{identifier}"
            stored = self.app.store.client.get_object(Bucket=bucket, Key=key)["Body"].read()
            md5 = hashlib.md5(stored).hexdigest()
            assert (md5, len(stored)) == (entry["hash"], entry["size_in_bytes"]), entry
            found[entry["relpath"]] = md5
        return found

    def readme(self, place: Place) -> bytes:
        """Return the README as the server has it."""
        with self._lock:
            answer = self.app.get(f"/readmes/{encoded(f'{place.base_uri}/{place.dataset}')}")
        return str(answer.json["readme"]).encode()

    def kept_reason(self, place: Place) -> str | None:
        """Return why a change is kept that was closed; "" if none is, None if it is being sent."""
        for note in (self.directory / "staging").glob(".edits/*/*/*.json"):
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(note.read_text())
                if place.dataset in str(record["dataset"]):
                    return None if record["reason"] is None else str(record["reason"])
        return ""

    def state(self, place: Place, name: str) -> str | None:
        """Return the state of a staged dataset as it is on the disk; None if there is none."""
        for _, record in staged_states(self.directory / "staging"):
            if (record["base_uri"], record["name"]) == (place.base_uri, name):
                return str(record["state"])
        return None


class Job(NamedTuple):
    status: int
    said: str


class Jobs:
    """Commands, each in a process of its own that is forked from one that has imported them."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._running: dict[int, Future[Job]] = {}
        self._count = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def run(self, *arguments: object, env: Mapping[str, object] | None = None) -> str:
        """Return what a command says; raises Failed unless it ends with 0."""
        future: Future[Job] = Future()
        with self._lock:
            self._count += 1
            self._running[self._count] = future
            environment = {name: str(value) for name, value in (env or {}).items()}
            line = json.dumps([self._count, environment, [*map(str, arguments)]]) + "\n"
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        try:
            job = future.result(RECOVERY_S)
        except TimeoutError:  # an OSError, which is none of a mount
            raise AssertionError(f"{arguments} does not end") from None
        if job.status:
            raise Failed(job.said)
        return job.said

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            number, status, said = json.loads(line)
            with self._lock:
                future = self._running.pop(number)
            future.set_result(Job(1 if status else 0, said))


def wait_until(condition: Callable[[], object], what: str, *, limit_s: float = RECOVERY_S) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def fault_world(
    account: Account,
    server: ServerHandle,
    directory: Path,
    constants: Constants = HURRIED,
    *,
    before_all: Callable[[Mapping[str, Front]], None] = lambda fronts: None,
) -> Iterator[World]:
    """Run all but the mount, which is made when the places are.

    `before_all` is called with the fronts, before a process begins that asks them.
    """
    logging.getLogger("waitress").setLevel(logging.ERROR)  # of how much it has to do
    with contextlib.ExitStack() as stack:
        data = directory / "server"
        data.mkdir()
        app = AppClient(server, data, max_put_bytes=PARTS_FROM, part_bytes=5 * MIB)
        stack.callback(app.close)
        endpoint = urlsplit(app.storage.endpoint)
        assert endpoint.port is not None
        before_store = stack.enter_context(front(("127.0.0.1", endpoint.port)))
        # The server itself asks the store, and signs URLs of its front.
        signed = dataclasses.replace(app.storage, endpoint=f"http://localhost:{before_store.port}")
        app.store.storage = signed
        listener = _listener()
        stack.callback(listener.close)
        web: Any = WebServer(app.app, listener, _Quiet())  # type: ignore[arg-type]
        stack.enter_context(web.running())
        before_server = stack.enter_context(front(listener.getsockname()))
        (directory / "constants.json").write_text(json.dumps(constants))
        mount = directory / "mnt"
        mount.mkdir()
        before_all({"server": before_server, "store": before_store})
        jobs = stack.enter_context(_jobs(account, directory, app))
        yield World(account, directory, app, mount, before_server, before_store, jobs)


def _listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def _hurried(account: Account, directory: Path, *arguments: object) -> list[str | Path]:
    command = (account.python, "-m", "tests.support.hurried", directory / "constants.json")
    return account.command(*command, *map(str, arguments))


def _environment(account: Account, app: AppClient) -> dict[str, str]:
    return {**account.environment, "DSERVER_TOKEN": app.token("grumpy")}


@contextlib.contextmanager
def _jobs(account: Account, directory: Path, app: AppClient) -> Iterator[Jobs]:
    with spawn(
        _hurried(account, directory, "jobs"),
        env=_environment(account, app),
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Jobs(process)
