"""Hosts of their own for the parts: network namespaces of this machine, on one switch.

Each host has its own addresses and names (/etc/hosts); files, users and the clock are this
machine's. A namespace lives as long as the process that was made for it, and these end with
this process, so nothing is left on the machine. Root makes them, and runs nothing else: each
host's parts are children of a process of the ordinary user, which is to the host what systemd
is: without it they are gone, all at once, as by a power cut.

    HOST/pid, HOST/log, HOST/down   of that process, as `running` has them for a part
    HOST/namespace                  the process whose namespaces are the host's
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dserverfs.base.durable_files import write_unsynced
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.server.store import die_with_parent
from dserverfs.server.store.signals import Signals
from storecluster.layout import ADDRESSES, OF_HOSTS, SERVER
from storecluster.running import Part, Running

# A namespace begins with all mounts there are; daemons whose mount it has would not end with it.
_LET_GO = "{ umount -i -c -l -a -t fuse.dserverfs 2>/dev/null || true; }"
READY = "ready"  # a file that the server's host makes
_SWITCH = "switch"
_START_S = 180.0
_STOP_S = 20.0
_POLL_S = 0.1
_COMMAND_S = 30.0


@contextmanager
def running(
    directory: Path, user: str, options: Sequence[str], restart_after_s: float, signals: Signals
) -> Iterator[dict[str, Running]]:
    """Give the hosts, with all parts at work, until the end of the block; raises DserverfsError.

    `directory` is prepared, `options` are those of the process of a host.
    """
    become = [_program("setpriv"), f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
    ready = directory / "config" / READY
    ready.unlink(missing_ok=True)
    with _namespaces(directory) as prefixes:
        hosts = {
            name: Running(
                Part(
                    name,
                    [
                        *(*prefixes[name], *become, sys.executable, "-m", "storecluster"),
                        *(str(directory), "--on", name, "--parent", str(os.getpid()), *options),
                    ],
                ),
                directory,
                restart_after_s,
            )
            for name in OF_HOSTS
        }
        try:
            for host in hosts.values():
                host.start()
            _wait_for(ready, hosts, directory, signals)
            yield hosts
        finally:
            for host in hosts.values():
                host.begin_to_stop()
            deadline_s = time.monotonic() + _STOP_S
            for host in hosts.values():
                host.stop(deadline_s)


def prefix(pid: int) -> list[str]:
    """Return what goes before a command that runs on the host of a namespace."""
    of = f"/proc/{pid}/ns"
    return [_program("nsenter"), f"--net={of}/net", f"--mount={of}/mnt", "--"]


def shown(directory: Path, host: str) -> str:
    """Return what an administrator types before a command that is to run on the host."""
    return shlex.join(prefix(int((directory / host / "namespace").read_text())))


def tend(hosts: dict[str, Running]) -> None:
    for host in hosts.values():
        if what := host.tend():
            print(f"cluster: {what}", file=sys.stderr, flush=True)


def _wait_for(ready: Path, hosts: dict[str, Running], directory: Path, signals: Signals) -> None:
    deadline_s = time.monotonic() + _START_S
    while not ready.exists():
        ended = [host.name for host in hosts.values() if host.has_ended()]
        if ended or time.monotonic() > deadline_s:
            name = ended[0] if ended else SERVER
            lines = (directory / name / "log").read_text().splitlines()
            what = "ended" if ended else "is not ready"
            raise DserverfsError(f"host {name} {what}: {lines[-1] if lines else 'without a word'}")
        signals.wait(_POLL_S)


@contextmanager
def _namespaces(directory: Path) -> Iterator[dict[str, list[str]]]:
    """Make the hosts and the switch between them; give what goes before a command on each."""
    holders: list[subprocess.Popen[bytes]] = []
    try:
        switch = _holder("--net", "true", holders)
        _run(*_in(switch), "ip", "link", "add", _SWITCH, "type", "bridge")
        _run(*_in(switch), "ip", "link", "set", _SWITCH, "up")
        prefixes = {}
        for name, address in ADDRESSES.items():
            names = shlex.quote(str(directory / "config" / f"hosts.{name}"))
            prepare = f"{_LET_GO} && mount --bind {names} /etc/hosts"
            pid = _holder("--net --mount", prepare, holders)
            _connect(pid, switch, name, address)
            (directory / name).mkdir(mode=0o755, exist_ok=True)
            write_unsynced(directory / name / "namespace", b"%d\n" % pid)
            prefixes[name] = prefix(pid)
        yield prefixes
    finally:
        for process in holders:
            process.kill()
            process.wait()


def _holder(kinds: str, prepare: str, holders: list[subprocess.Popen[bytes]]) -> int:
    """Return the process that has new namespaces, once `prepare` was done in them."""
    script = f"{prepare} && echo ready && exec sleep infinity"
    process = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
            *(_program("unshare"), *kinds.split(), "--", "/bin/sh", "-c", script),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    holders.append(process)
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != b"ready\n":
        said = process.stderr.read().decode().strip()
        raise UsageError(f"--hosts: this machine gives no namespaces: {said}")
    return process.pid


def _connect(pid: int, switch: int, name: str, address: str) -> None:
    """Have a cable from the host, where it is `lan`, to the switch."""
    cable = ("ip", "link", "add", "lan", "netns", str(pid), "type", "veth")
    _run(*cable, "peer", "name", name, "netns", str(switch))
    _run(*_in(switch), "ip", "link", "set", name, "master", _SWITCH, "up")
    _run(*_in(pid), "ip", "address", "add", f"{address}/24", "dev", "lan")
    for device in ("lan", "lo"):
        _run(*_in(pid), "ip", "link", "set", device, "up")


def _in(pid: int) -> list[str]:
    return [_program("nsenter"), f"--net=/proc/{pid}/ns/net", "--"]


def _run(*command: str) -> None:
    done = subprocess.run(
        [_program(command[0]), *command[1:]],
        check=False,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
    )
    if done.returncode != 0:
        raise UsageError(f"--hosts: {' '.join(command)}: {done.stderr.strip()}")


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise UsageError(f"--hosts: the program {name} is not installed (iproute2, util-linux)")
    return path
