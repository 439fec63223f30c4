"""`scripts/cluster`: a SeaweedFS cluster on this machine, until SIGINT or SIGTERM.

Three masters, three volume servers with each object on two of them, two filers on
PostgreSQL with an S3 gateway each, and HAProxy before these. Everything is in DIR and
listens on 127.0.0.1. What is stored stays there for the next start. When all works, the
S3 endpoint, its credentials and the settings of `dserverfs serve` are printed. With --server a
server runs as well, gunicorn on PostgreSQL, by TLS; with --hosts, as root, each part is on a host
of its own, a network namespace, and there are two hosts for clients.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dserverfs.base.durable_files import write_unsynced
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.local_files import call_libc
from dserverfs.base.locks import locked_within
from dserverfs.server.store.die_with_parent import PR_SET_PDEATHSIG
from dserverfs.server.store.signals import Signals, Stopped
from dserverfs.server.store.signing import require_bucket_name
from storecluster import hosts, layout, settings
from storecluster.cluster import POLL_S, Cluster
from storecluster.layout import ADDRESSES, CLIENTS, OF_HOSTS, SERVER, Layout
from storecluster.web import ServerFiles

_LOCKS = {"lock", "lock.hosts"}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    os.umask(0o077)
    try:
        with Signals() as signals, ExitStack() as stack:
            _end_with(arguments.parent)
            _work(arguments, signals, stack)
    except Stopped:
        return 0
    except DserverfsError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _work(arguments: argparse.Namespace, signals: Signals, stack: ExitStack) -> None:
    """Do what one of the processes of a cluster does; returns for one that only prepares."""
    directory: Path = arguments.directory.absolute()
    if arguments.on:
        _run_host(directory, arguments, signals, stack)
    elif arguments.hosts and not arguments.prepare:
        _run_hosts(directory, arguments, signals, stack)
    else:
        _prepare(directory, stack, "lock")
        cluster, of = _cluster(directory, arguments)
        cluster.prepare()
        if arguments.prepare:
            return
        stack.enter_context(cluster.running(arguments.bucket, signals))
        _print(directory, of, arguments.bucket)
        _tend(cluster, signals)


def _cluster(directory: Path, arguments: argparse.Namespace) -> tuple[Cluster, Layout]:
    addresses = ADDRESSES if arguments.hosts or arguments.on else {}
    with_server = arguments.server or bool(addresses)
    of = layout.load(directory, addresses, with_server=with_server)
    if with_server:  # read when boto3 makes a client; certificates of programs are not of the file
        os.environ["AWS_CA_BUNDLE"] = str(ServerFiles(directory).authority)
    return Cluster(directory, of, arguments.restart_after, arguments.on), of


def _run_host(
    directory: Path, arguments: argparse.Namespace, signals: Signals, stack: ExitStack
) -> None:
    """Run the parts of one host, whose namespaces this process has."""
    stack.enter_context(locked_within(directory / f"lock.{arguments.on}", 5.0))
    cluster, _ = _cluster(directory, arguments)
    stack.enter_context(cluster.running(arguments.bucket, signals))
    if arguments.on == SERVER:
        write_unsynced(directory / "config" / hosts.READY, b"")
    _tend(cluster, signals)


def _run_hosts(
    directory: Path, arguments: argparse.Namespace, signals: Signals, stack: ExitStack
) -> None:
    """Run a process of the ordinary user on each host."""
    if os.geteuid() != 0:
        raise UsageError("--hosts: only root makes network namespaces")
    _prepare(directory, stack, "lock.hosts")
    options = [f"--restart-after={arguments.restart_after}"]
    options += [f"--bucket={bucket}" for bucket in arguments.bucket]
    become = ("setpriv", f"--reuid={arguments.user}", f"--regid={arguments.user}", "--init-groups")
    command = (sys.executable, "-m", "storecluster", str(directory), "--hosts", "--prepare")
    if subprocess.run([*become, "--", *command, *options], check=False).returncode != 0:
        raise Stopped  # it has said why
    running = stack.enter_context(
        hosts.running(directory, arguments.user, options, arguments.restart_after, signals)
    )
    of = layout.load(directory, ADDRESSES, with_server=True)
    for name in (*OF_HOSTS, *CLIENTS):
        print(f"on {name}: {hosts.shown(directory, name)}")
    _print(directory, of, arguments.bucket)
    while True:
        signals.wait(POLL_S)
        hosts.tend(running)


def _tend(cluster: Cluster, signals: Signals) -> None:
    while True:
        signals.wait(POLL_S)
        cluster.tend()


def _prepare(directory: Path, stack: ExitStack, lock: str) -> None:
    """Have a directory that is ours alone from now on."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        stack.enter_context(locked_within(directory / lock, 0.0))
        strangers = {entry.name for entry in directory.iterdir()} - _LOCKS
    except BlockingIOError as error:
        raise UsageError(
            f"{directory} has a cluster that runs; end that scripts/cluster"
        ) from error
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from error
    if strangers and "ports.json" not in strangers:
        raise UsageError(
            f"{directory} is not empty and has no cluster ({min(strangers)} is in it);"
            " give an empty or a new directory"
        )


def _end_with(parent: int | None) -> None:
    """Have the kernel send SIGTERM when the process that started us ends; raises Stopped."""
    if parent is None:
        return
    call_libc("prctl", PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0, path="prctl")
    if os.getppid() != parent:
        raise Stopped


def _print(directory: Path, of: Layout, buckets: Sequence[str]) -> None:
    storage = settings.storage(directory, of, buckets[0])
    print(f"S3 endpoint: {storage.endpoint}")
    print(f"access key: {storage.access_key}")
    print(f"secret key: {storage.secret_key}")
    if of.with_server:
        _print_server(directory, of, buckets[0])
    else:
        for bucket in buckets:
            of_bucket = settings.storage(directory, of, bucket)
            file = settings.write_serve_settings(directory, of_bucket)
            print(f"settings of dserverfs serve --bucket {bucket}, also in {file}:")
            print("".join(f"    {line}\n" for line in file.read_text().splitlines()), end="")
    print(f"administrator's shell: {directory}/weed-shell")
    print("ready: kill any part by the pid in its directory, and see", flush=True)


def _print_server(directory: Path, of: Layout, bucket: str) -> None:
    files = ServerFiles(directory)
    base_uri = f"dserver://{of.server_url.partition('://')[2]}/s3/{bucket}"
    print(f"dserver URL: {of.server_url}")
    print(f"base URI: {base_uri}")
    print(f"certificate authority, for clients: {files.authority}")
    print(f"user: {(files.data / 'username').read_text()}, password: {files.data / 'password'}")
    where = "on client1 or client2" if of.hosts else "here"
    print(
        f"to mount {where}: export DSERVER_CA_FILE={files.authority};"
        f" dserverfs login {of.server_url} && mkdir -p ~/datasets &&"
        f" dserverfs mount {base_uri} ~/datasets"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="for everything")
    parser.add_argument(
        "--bucket", action="append", metavar="NAME", help="to be made (default: datasets)"
    )
    parser.add_argument(
        "--restart-after",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="a part that ends is started again so much later (default: %(default)s)",
    )
    parser.add_argument(
        "--server", action="store_true", help="with a server of the first bucket, by TLS"
    )
    parser.add_argument(
        "--hosts", action="store_true", help="the same, each part on a host of its own"
    )
    for name in ("--user", "--on"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.bucket = arguments.bucket or ["datasets"]
    try:
        for bucket in arguments.bucket:
            require_bucket_name(bucket, is_foreign=False)
    except UsageError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
