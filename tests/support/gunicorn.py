"""A real gunicorn for tests, with the store of a running server, and what is asked of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import requests

from dserverfs.server.store import die_with_parent
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.signing import Storage
from tests.support.servers import SOURCES, ServerHandle, new_uuid, serve_environment

APPLICATION = "dserverfs.server.wsgi:application"
WITH_STEPS = "tests.support.stepping_app:application"
STOP_S = 30


def new_bucket(storage: Storage) -> str:
    """Make a bucket on another server; return its name, which a variable can have."""
    bucket = f"b{new_uuid().replace('-', '')}"
    ObjectStore(storage).ensure_bucket(bucket)
    return bucket


def settings(data: Path, storage: Storage, bucket: str, **others: str) -> dict[str, str]:
    """Return the environment of a server with this bucket."""
    return {
        **serve_environment(),
        "DSERVER_DATA": str(data),
        "DSERVER_BUCKET": bucket,
        f"DTOOL_S3_ENDPOINT_{bucket}": storage.endpoint,
        f"DTOOL_S3_ACCESS_KEY_ID_{bucket}": storage.access_key,
        f"DTOOL_S3_SECRET_ACCESS_KEY_{bucket}": storage.secret_key,
        **others,
    }


@contextlib.contextmanager
def started(
    environment: Mapping[str, str], *options: str, app: str = APPLICATION, log: Path
) -> Iterator[ServerHandle]:
    """Start gunicorn with two workers on a free port; it may not answer yet.

    Connections wait until it does, and are refused when it has ended.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        address = "{}:{}".format(*listener.getsockname())
        output = stack.enter_context(open(log, "ab"))
        process = stack.enter_context(
            subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
                    *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"),
                    *("--config", "python:dserverfs.server.gunicorn_conf", "--workers", "2"),
                    *(*options, app),
                ],
                stdout=output,
                stderr=output,
                cwd=SOURCES,
                env=dict(environment),
                pass_fds=[listener.fileno()],
                text=True,
            )
        )
        listener.close()
        base_uri = f"dserver://{address}/s3/{environment['DSERVER_BUCKET']}"
        token_file = Path(environment["DSERVER_DATA"]) / "token"
        try:
            yield ServerHandle(f"http://{address}", base_uri, token_file, process, {})
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextlib.contextmanager
def running_gunicorn(
    environment: Mapping[str, str], *options: str, app: str = APPLICATION, log: Path
) -> Iterator[ServerHandle]:
    """Run gunicorn until the end of the block; it answers."""
    with started(environment, *options, app=app, log=log) as server:
        try:
            requests.get(f"{server.url}/health", timeout=60).raise_for_status()
        except requests.RequestException as error:
            raise AssertionError(f"gunicorn did not start: {log.read_text()}") from error
        yield server
