"""A site cache of tests: nginx with the configuration that `dserverfs site-cache` prints."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.child_processes import spawn
from tests.support.mount_daemons import wait_for

# One process, which the end of the test run ends. Temporary files and logs are in its directory.
_CONFIGURATION = """
daemon off;
master_process off;
pid "{directory}/nginx.pid";
error_log "{directory}/nginx.log" warn;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path "{directory}/t1";
    proxy_temp_path "{directory}/t2";
    fastcgi_temp_path "{directory}/t3";
    uwsgi_temp_path "{directory}/t4";
    scgi_temp_path "{directory}/t5";
    include "{directory}/site-cache.conf";
}}
"""


class SiteCache(NamedTuple):
    """A running one."""

    port: int
    directory: Path  # with the logs
    kept: Path  # the objects

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> list[str]:
        """Return the lines on the requests."""
        return (self.directory / "dserverfs-site-cache.log").read_text().splitlines()


def nginx() -> str:
    """Return the path of nginx; skips the test if there is none."""
    path = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        pytest.skip("nginx is not installed; scripts/setup-env installs it for the extra test")
    return path


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def printed(*options: str) -> str:
    """Return what the command prints."""
    command = [sys.executable, "-m", "dserverfs", "site-cache", *options]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextlib.contextmanager
def site_cache(
    directory: Path, stores: Sequence[str], *options: str, kept: Path | None = None, port: int = 0
) -> Iterator[SiteCache]:
    """Run one for these stores until the end of the block; on `port` if that is given."""
    program = nginx()
    directory.mkdir(exist_ok=True)
    kept = kept or directory / "kept"
    own_port, inner_port = free_ports(2)
    port = port or own_port
    text = printed(
        *[word for store in stores for word in ("--store", store)],
        *("--listen", f"127.0.0.1:{port}", "--inner-port", str(inner_port)),
        *("--directory", str(kept), "--log-directory", str(directory), "--size", "1G"),
        *options,
    )
    (directory / "site-cache.conf").write_text(text)
    configuration = directory / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory))
    with (
        open(directory / "nginx.out", "ab") as output,
        spawn(
            [program, "-p", directory, "-c", configuration, "-e", directory / "nginx.log"],
            stdout=output,
            stderr=output,
        ) as process,
    ):

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError((directory / "nginx.out").read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        wait_for(answers, "nginx to listen")
        yield SiteCache(port, directory, kept)
