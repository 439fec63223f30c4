"""Hosts of a test's own, each a network namespace, on one cable.

A namespace lives as long as the process that was made for it, so a run that is killed leaves
neither a namespace nor a cable. All else of a host is this machine's: files, users, clock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.child_processes import spawn
from tests.support.mount_daemons import wait_for


class Host(NamedTuple):
    """One of the hosts, with its addresses on the cable."""

    namespace: Path
    addresses: tuple[str, ...]
    mounts: Path | None = None  # a namespace of mounts, where it has names of its own

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return what goes before a command that is run on the host."""
        mounts = () if self.mounts is None else (f"--mount={self.mounts}",)
        return ("nsenter", f"--net={self.namespace}", *mounts, "--")

    def run(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True, timeout=30)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread open its sockets on the host, inside the block."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self.namespace, os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(home)
            os.close(home)
            os.close(there)


def why_there_are_none() -> str:
    """Return why this machine gives no hosts; empty if it does."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("ip") is None:
        return "the program ip is not installed; it is in Debian's iproute2"
    tried = "ip link add x type bridge && ip link add y type veth && mount --bind /etc /etc"
    command = ["unshare", "--net", "--mount", "sh", "-c", tried]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return f"no network namespaces: {done.stderr.strip()}" if done.returncode else ""


@contextlib.contextmanager
def two_hosts(*addresses: tuple[str, ...]) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts with these addresses; skips the test where that is not allowed."""
    if why_not := why_there_are_none():
        pytest.skip(why_not)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(_host(each)) for each in addresses)
        pids = [host.namespace.parts[2] for host in (first, second)]
        cable = ["ip", "link", "add", "lan", "netns", pids[0], "type", "veth"]
        cable += ["peer", "name", "lan", "netns", pids[1]]
        subprocess.run(cable, capture_output=True, timeout=30, check=True)
        for host in (first, second):
            for address in host.addresses:
                # At once: an IPv6 address is looked for on the cable else.
                nodad = ("nodad",) if ":" in address else ()
                size = "64" if ":" in address else "24"
                host.run("ip", "address", "add", f"{address}/{size}", "dev", "lan", *nodad)
            host.run("ip", "link", "set", "lan", "up")
            host.run("ip", "link", "set", "lo", "up")
        yield first, second


@contextlib.contextmanager
def _host(addresses: tuple[str, ...]) -> Iterator[Host]:
    with spawn(["unshare", "--net", "sleep", "infinity"]) as process:
        namespace = Path(f"/proc/{process.pid}/ns/net")
        ours = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(namespace) != ours, "a network namespace")
        yield Host(namespace, addresses)


def _enter(namespace: int) -> None:
    """`setns`, which Python has since 3.12."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
