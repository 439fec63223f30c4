"""The demonstration: a server, two real datasets and a mount, all on this machine.

Runs the commands a user would, in processes of their own. What it serves is
kept and found again the next time; Ctrl-C takes mount and server away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from dserverfs.base import child_processes, end_signals, mountinfo
from dserverfs.base.errors import Conflict, UsageError
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import DserverURI
from dserverfs.base.printable import counted
from dserverfs.cli.demo_datasets import build_datasets
from dserverfs.client import Client
from dserverfs.mount import mountpoint
from dserverfs.settings import TOKEN_FILE, Settings

STOP_TIMEOUT_S = 15.0
SHOWN_BYTES = 300


class Served(NamedTuple):
    """What `dserverfs serve` prints when it is ready."""

    url: str
    base_uri: str
    token_file: Path


def run(path: Path | None, data: Path, *, once: bool) -> None:
    """Serve, publish, mount and show; until Ctrl-C, or with `once` no longer than that takes.

    Raises UsageError with what failed.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_a_signal())
        mountpoint.require_fuse("demo")
        if path is None:
            path = Path(stack.enter_context(_temporary_directory())) / "datasets"
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path}: cannot be made a mount point: {error.strerror}") from error
        path = mountpoint.resolve(path)
        served = stack.enter_context(_serve(data))
        with tempfile.TemporaryDirectory(prefix="dserverfs-demo-") as scratch:
            _publish(served, Path(scratch))
        stack.enter_context(_mounted(served, path))
        try:
            _show(path)
        except OSError as error:
            raise UsageError(
                f"{error.filename or path} cannot be read: {error.strerror}; "
                f"if it stays so, remove {data} and start again"
            ) from error
        if once:
            return
        _say_what_to_try(served, path)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                signal.pause()
        print("\nstopping")


@contextlib.contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Let a signal end the block as Ctrl-C does, and a second one not end what takes all away."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in end_signals.NUMBERS:
            signal.signal(each, signal.SIG_IGN)  # also of what is started to take it away
        raise KeyboardInterrupt

    taken = [each for each in end_signals.NUMBERS if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _temporary_directory() -> Iterator[str]:
    """Yield a new directory; remove it only if nothing is mounted or left in it."""
    path = tempfile.mkdtemp(prefix="dserverfs-")
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            (Path(path) / "datasets").rmdir()
            Path(path).rmdir()


@contextlib.contextmanager
def _serve(data: Path) -> Iterator[Served]:
    command = [*_dserverfs(), "serve", "--data", str(data), "--port", "0"]
    # In a session of its own: Ctrl-C must reach the mount first, then the server.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        said: dict[str, str] = {}
        while "token file" not in said:
            line = process.stdout.readline()
            if not line:
                raise UsageError(f"serve ended with status {process.wait()}; it said why above")
            name, _, value = line.strip().partition(": ")
            said[name] = value
        yield Served(said["dserver URL"], said["base URI"], Path(said["token file"]))
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _publish(served: Served, scratch: Path) -> None:
    uri = DserverURI.parse(served.base_uri)
    assert uri.base_uri is not None
    settings = Settings({TOKEN_FILE: str(served.token_file)}, {})
    with Client(uri.server, settings, cache_directory=scratch / "cache") as client:
        known = {dataset.uuid for dataset in client.catalogue.listed(uri.base_uri)}
        for directory in build_datasets(scratch):
            dataset = LocalDataset.read(directory)
            if dataset.admin_metadata["uuid"] in known:
                continue
            with contextlib.suppress(Conflict):
                client.uploader.upload(dataset, uri.base_uri)


@contextlib.contextmanager
def _mounted(served: Served, path: Path) -> Iterator[None]:
    environment = {**os.environ, TOKEN_FILE: str(served.token_file), "DSERVER_PROTOCOL": "http"}
    environment.pop("DSERVER_TOKEN", None)
    before = mountinfo.find_mounted(path)
    try:
        done = subprocess.run(
            [*_dserverfs(), "mount", served.base_uri, str(path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # `_show` says where it is
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            raise UsageError(done.stderr.strip().removeprefix("dserverfs: "))
        yield
    finally:
        if mountinfo.find_mounted(path) not in (None, before):
            mountpoint.detach(path)


def _show(path: Path) -> None:
    """Print what the mount holds, read through it."""
    print(f"mounted at {path}:")
    for dataset in sorted(path.iterdir()):
        items = [item for item in sorted((dataset / "data").rglob("*")) if item.is_file()]
        size = sum(len(item.read_bytes()) for item in items)
        print(f"  {dataset.name}: {counted(len(items), 'item')}, {counted(size, 'byte')} read")
        for item in items[:3]:
            print(f"    {item.relative_to(dataset)}  {counted(item.stat().st_size, 'byte')}")
        text = items[0].read_bytes()[:SHOWN_BYTES].decode("utf-8", "replace")
        print("    " + "\n    ".join(text.splitlines()[:3]))


def _say_what_to_try(served: Served, path: Path) -> None:
    print(
        f"""
Try, in another terminal:
  ls -l {path}
  cat {path}/palmer-penguins/README.yml
  cp -r {path}/vega-datasets /tmp/
  grep -c Gentoo {path}/palmer-penguins/data/*.csv
or mount it yourself:
  export {TOKEN_FILE}={served.token_file}
  dserverfs mount {served.base_uri} MOUNTPOINT
Ctrl-C ends it."""
    )


def _dserverfs() -> list[str]:
    return child_processes.module_command("dserverfs")
