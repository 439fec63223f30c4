"""The server of a large catalogue: gunicorn, what its workers hold, and mounts of it.

Two workers, as on two cores, on the database that `large_catalogue` has filled. Clients are on
the same cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import requests

from dserverfs.base.errors import DserverfsError
from dserverfs.base.model import DserverURI
from dserverfs.server.store.signing import Storage
from tests.support import gunicorn
from tests.support.mounts import client_of, detach
from tests.support.process_figures import Held, cpu_seconds
from tests.support.servers import SOURCES, ServerHandle

PROCESSES = 4  # of those that refresh
NOWHERE = Storage("http://127.0.0.1:9", "key", "secret", "bucket-0")  # no item is read


class Mounted(NamedTuple):
    """How long it takes until a mount is listed, in seconds."""

    took_s: float
    processor_s: float  # of command, daemon and server
    names: int


class Refreshed(NamedTuple):
    """How long mounts waited that all listed their base URI at once, in seconds."""

    all_s: float
    median_s: float
    datasets: int  # of all their listings
    given_up: int  # of the mounts: they show what they have, and ask again later
    server_s: float  # processor time of the server's workers


@contextlib.contextmanager
def running(data: Path, address: str, log: Path) -> Iterator[ServerHandle]:
    """Run gunicorn on a data directory and a database."""
    environment = gunicorn.settings(data, NOWHERE, "bucket-0", DSERVER_DATABASE=address)
    with gunicorn.running_gunicorn(environment, log=log) as server:
        yield server


def workers(server: ServerHandle) -> list[int]:
    """Return the process ids of gunicorn's workers: gunicorn is the guard's own process."""
    pid = server.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_mib(server: ServerHandle) -> float:
    """Return what the largest worker holds, in MiB."""
    return max(Held.by(pid).rss_kib for pid in workers(server)) / 1024


def base_uris(server: ServerHandle, username: str) -> list[str]:
    """Return the addresses for mounts of the base URIs that a user may search."""
    known = server.get("/me", token=server.token_for(username)).json()
    host = server.url.removeprefix("http://")
    return [
        f"dserver://{host}/{backend.replace('://', '/', 1)}"
        for backend in known["search_permissions_on_base_uris"]
    ]


def mount_and_list(server: ServerHandle, username: str, directory: Path) -> Mounted:
    """Mount a base URI and list it; at the end it is not mounted."""
    home, mountpoint = directory / "home", directory / "mnt"
    for path in (home, mountpoint):
        path.mkdir(exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
        "HOME": str(home),
        "DSERVER_TOKEN": server.token_for(username),
        "PYTHONPATH": str(SOURCES),
    }
    uri = random.choice(base_uris(server, username))
    command = [sys.executable, "-m", "dserverfs", "mount", uri, str(mountpoint)]

    def processor_s() -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        pids = [*workers(server), *_daemons(mountpoint)]
        return ended.ru_utime + ended.ru_stime + sum(map(cpu_seconds, pids))

    before_s, begun_s = processor_s(), time.perf_counter()
    try:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        names = os.listdir(mountpoint)
        took_s = time.perf_counter() - begun_s
        return Mounted(took_s, processor_s() - before_s, len(names))
    finally:
        subprocess.run(
            [sys.executable, "-m", "dserverfs", "umount", str(mountpoint)],
            env=environment,
            check=False,
        )
        detach(mountpoint)


def _daemons(mountpoint: Path) -> list[int]:
    """Return the processes that have a mount point among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if os.fsencode(mountpoint) in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def refresh(server: ServerHandle, count: int, directory: Path) -> Refreshed:
    """Let the clients of `count` mounts list a base URI each at once, as a refresh does."""
    asked = [
        (base_uris(server, f"user{number}")[0], server.token_for(f"user{number}"))
        for number in range(1, count + 1)
    ]
    before_s = sum(map(cpu_seconds, workers(server)))
    with concurrent.futures.ProcessPoolExecutor(PROCESSES) as pool:
        waiting = [
            pool.submit(_refresh_here, asked[number::PROCESSES], directory / str(number))
            for number in range(PROCESSES)
        ]
        found = [each for future in waiting for each in future.result()]
    waits = sorted(took_s for took_s, _ in found)
    server_s = sum(map(cpu_seconds, workers(server))) - before_s
    counts = [count for _, count in found if count >= 0]
    given_up = len(found) - len(counts)
    return Refreshed(waits[-1], waits[len(waits) // 2], sum(counts), given_up, server_s)


def _refresh_here(asked: list[tuple[str, str]], directory: Path) -> list[tuple[float, int]]:
    """Return for each how long its listing took, and how many datasets it has; -1 for none."""
    begun_s = time.perf_counter()

    def listed(number: int, uri: str, token: str) -> tuple[float, int]:
        parsed = DserverURI.parse(uri)
        assert parsed.base_uri is not None
        with client_of(uri, token, directory / str(number)) as client:
            try:
                count = len(client.resolver.datasets(parsed.base_uri))
            except DserverfsError:
                count = -1
        return time.perf_counter() - begun_s, count

    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(listed, number, *each) for number, each in enumerate(asked)]
        return [future.result() for future in futures]


def ask_pages(server: ServerHandle, username: str, count: int) -> float:
    """Return the 99th percentile of pages over HTTP, in milliseconds, by one client."""
    took_ms = []
    token = server.token_for(username)
    with requests.Session() as session:
        for number in range(count):
            begun_s = time.perf_counter()
            answer = session.get(
                f"{server.url}/uris?page_size=100&page={number % 20 + 1}&sort=-frozen_at",
                headers={"Authorization": f"Bearer {token}"},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            took_ms.append((time.perf_counter() - begun_s) * 1000)
    return sorted(took_ms)[count * 99 // 100]
