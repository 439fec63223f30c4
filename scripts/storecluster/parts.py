"""The parts of the cluster: their ports, and the command line of each.

    master1..3      which volume server has which data; one of them leads (Raft)
    volume1..3      the data, each object on two of them (replication 001)
    filer1, filer2  S3, and the names of objects, which they have in PostgreSQL
    postgresql      these names
    haproxy         the one address of both filers' S3

All listen on 127.0.0.1. On hosts of their own, `-ip` is the address by which the others
reach this one, and each port may be the program's default.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import UsageError

HOST = "127.0.0.1"
MASTERS = ("master1", "master2", "master3")
VOLUMES = ("volume1", "volume2", "volume3")
FILERS = ("filer1", "filer2")
# gRPC is on the port + GRPC: an S3 gateway beside its filer knows of no other place.
GRPC = 10_000
# Below those that the kernel gives to clients, who could have the port of a part that is
# being started again; above those of well-known services.
_FIRST_PORT, _LAST_PORT = 12_000, 22_000
_ATTEMPTS = 500
_NAMES = {
    **dict.fromkeys((*MASTERS, *VOLUMES, "postgresql", "haproxy"), ("port",)),
    **dict.fromkeys(FILERS, ("port", "s3.port")),
}

Ports = Mapping[str, Mapping[str, int]]


class Part(NamedTuple):
    """One program of the cluster."""

    name: str
    command: Sequence[str | Path]
    ports: Mapping[str, int]


def load_ports(path: Path) -> Ports:
    """Return the ports of all parts: those of the last start, else free ones.

    They stay the same, for masters know each other by their addresses, and clients have
    that of S3. Raises UsageError if the file is none of ours.
    """
    try:
        ports = json.loads(path.read_text())
    except FileNotFoundError:
        ports = _free_ports()
        write_durably(path, json.dumps(ports, indent=1).encode())
    except ValueError as error:
        raise UsageError(f"{path} does not hold the ports of a cluster: {error}") from error
    if {part: tuple(names) for part, names in ports.items()} != _NAMES:
        raise UsageError(f"{path} holds other ports than those of this cluster")
    return ports  # type: ignore[no-any-return]


def _free_ports() -> Ports:
    free = _iter_free()
    return {part: {name: next(free) for name in names} for part, names in _NAMES.items()}


def _iter_free() -> Iterator[int]:
    seen: set[int] = set()
    for _ in range(_ATTEMPTS):
        port = random.randrange(_FIRST_PORT, _LAST_PORT)
        if port not in seen and is_free(port) and is_free(port + GRPC):
            seen.add(port)
            yield port
    raise UsageError(f"there are no free ports between {_FIRST_PORT} and {_LAST_PORT}")


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True


def weed_parts(weed: str, directory: Path, ports: Ports) -> list[Part]:
    """Return masters, volume servers and filers, in the order in which they are started."""
    return [
        *(_master(weed, directory, ports, name) for name in MASTERS),
        *(_volume(weed, directory, ports, name) for name in VOLUMES),
        *(_filer(weed, directory, ports, name) for name in FILERS),
    ]


def _master(weed: str, directory: Path, ports: Ports, name: str) -> Part:
    return _part(
        name,
        ports,
        *(weed, "-logtostderr", "-v=-1", "master"),
        f"-peers={masters(ports)}",
        f"-mdir={directory / name}",
        "-defaultReplication=001",  # each object on one more server of the same rack
        # When the leader dies another one is elected; until then nobody gets a place to write.
        # The default is 10 s.
        "-electionTimeout=2s",
        # Volumes grow as they are filled. Small ones are vacuumed and copied in less time;
        # a petabyte wants the default, 30 GB.
        "-volumeSizeLimitMB=1024",
        "-telemetry=false",
        "-disableHttp",
    )


def _volume(weed: str, directory: Path, ports: Ports, name: str) -> Part:
    return _part(
        name,
        ports,
        *(weed, "-logtostderr", "-v=-1", "volume"),
        f"-master={masters(ports)}",
        f"-dir={directory / name}",  # one directory a disk, with commas between them
        "-max=10000",  # volumes; 0 divides the free space by the size of one
        "-minFreeSpace=2",  # percent; then it takes no more, and the others go on
        # It tells the masters that it goes, and then answers for so long: 10 s is right where
        # it is restarted on purpose, with other clients than a test's.
        "-preStopSeconds=0",
    )


def _filer(weed: str, directory: Path, ports: Ports, name: str) -> Part:
    return _part(
        name,
        ports,
        *(weed, "-logtostderr", "-v=-1", "filer"),
        f"-master={masters(ports)}",
        "-defaultReplicaPlacement=001",
        "-disableHttp",
        f"-localSocket={directory / name / 'filer.sock'}",
        "-s3",
        f"-s3.config={directory / 's3.json'}",
        f"-s3.localSocket={directory / name / 's3.sock'}",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.autoCreateBucket=false",  # a bucket's name that is mistyped is an error
        "-s3.iam=false",
        # Two filers on one host cannot both have the defaults of these.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    )


def _part(name: str, ports: Ports, *command: str) -> Part:
    addresses = (f"-{port}={number}" for port, number in ports[name].items())
    return Part(name, [*command, f"-ip={HOST}", f"-ip.bind={HOST}", *addresses], ports[name])


def masters(ports: Ports) -> str:
    return ",".join(f"{HOST}:{ports[name]['port']}" for name in MASTERS)


def s3_endpoint(ports: Ports) -> str:
    return f"http://{HOST}:{ports['haproxy']['port']}"


def gateway_endpoints(ports: Ports) -> list[str]:
    return [f"http://{HOST}:{ports[name]['s3.port']}" for name in FILERS]
