"""Which part is on which host, and its ports.

Without hosts of their own, which is the default, all parts listen on 127.0.0.1. With them a host
is a network namespace of this machine, see `hosts`:

    store1, store2     a master, a volume server, a filer with its S3 gateway, and HAProxy
    store3             a master and a volume server
    server             PostgreSQL, gunicorn and an HAProxy of its own
    client1, client2   nothing: that is where users mount

    ports.json   the ports of all parts, the same with each start
    hosts.json   the addresses of the hosts, if there are any
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.durable_files import write_durably
from dserverfs.base.errors import UsageError

HERE = "127.0.0.1"
MASTERS = ("master1", "master2", "master3")
VOLUMES = ("volume1", "volume2", "volume3")
FILERS = ("filer1", "filer2")
SERVER = "server"
STORES: Mapping[str, tuple[str, ...]] = {
    "store1": ("master1", "volume1", "filer1", "haproxy1"),
    "store2": ("master2", "volume2", "filer2", "haproxy2"),
    "store3": ("master3", "volume3"),
}
OF_HOSTS = {SERVER: ("postgresql", "haproxy3", "gunicorn"), **STORES}
CLIENTS = ("client1", "client2")
ADDRESSES = {
    SERVER: "10.88.0.1",
    **{name: f"10.88.0.{number}" for number, name in enumerate(STORES, 11)},
    **{name: f"10.88.0.{number}" for number, name in enumerate(CLIENTS, 21)},
}
# By these names clients know server and store; that of the store has two addresses.
SERVER_NAME, STORE_NAME = "data.example", "store.example"
# gRPC is on the port + GRPC: an S3 gateway beside its filer knows of no other place.
GRPC = 10_000
# Below those that the kernel gives to clients, who could have the port of a part that is
# being started again; above those of well-known services.
_FIRST_PORT, _LAST_PORT = 12_000, 22_000
_ATTEMPTS = 500
_NAMES = {
    **dict.fromkeys((*MASTERS, *VOLUMES, "postgresql", "gunicorn"), ("port",)),
    **dict.fromkeys(FILERS, ("port", "s3.port")),
    "haproxy": ("port", "web"),  # those of S3, and of the server
}

Ports = Mapping[str, Mapping[str, int]]


class Layout(NamedTuple):
    """Where the parts of a cluster are."""

    ports: Ports
    hosts: Mapping[str, str]  # addresses; empty: all is on this machine
    with_server: bool  # PostgreSQL for a server, and gunicorn

    def address(self, part: str) -> str:
        return self.hosts[self.host(part)] if self.hosts else HERE

    def place(self, part: str, port: str = "port") -> str:
        return f"{self.address(part)}:{self.ports[part][port]}"

    def host(self, part: str) -> str:
        return next(host for host, parts in OF_HOSTS.items() if part in parts)

    @property
    def proxies(self) -> list[str]:
        return ["haproxy1", "haproxy2", "haproxy3"] if self.hosts else ["haproxy"]

    @property
    def s3_endpoint(self) -> str:
        """Return what clients reach S3 by."""
        scheme = "https" if self.with_server else "http"
        return f"{scheme}://{STORE_NAME if self.hosts else HERE}:{self.ports['haproxy']['port']}"

    @property
    def server_url(self) -> str:
        """Return what clients reach the server by."""
        return f"https://{SERVER_NAME if self.hosts else HERE}:{self.ports['haproxy']['web']}"

    @property
    def gateway_endpoints(self) -> list[str]:
        return [f"http://{self.place(name, 's3.port')}" for name in FILERS]

    def names_on(self, host: str) -> str:
        """Return /etc/hosts of a host. The server has the store's name for its own HAProxy."""
        stores = (SERVER,) if host == SERVER else ("store1", "store2")
        pairs = [(HERE, "localhost"), (self.hosts[SERVER], SERVER_NAME)]
        pairs += [(self.hosts[each], STORE_NAME) for each in stores]
        return "".join(f"{address} {name}\n" for address, name in pairs)


def load(directory: Path, hosts: Mapping[str, str], *, with_server: bool) -> Layout:
    """Return the layout of the last start, else a new one with free ports.

    It stays the same, for masters know each other by their addresses, and clients have
    that of S3. Raises UsageError if the files are none of ours, or of other hosts.
    """
    known = _read(directory / "hosts.json")
    is_new = not (directory / "ports.json").exists()
    if not is_new and (known or {}) != hosts:
        other = "without" if hosts else "with"
        raise UsageError(f"{directory} has a cluster that was made {other} --hosts")
    ports = _checked(directory / "ports.json", _read(directory / "ports.json") or {})
    if is_new and hosts:
        write_durably(directory / "hosts.json", json.dumps(hosts, indent=1).encode())
    if (complete := _with_free_ports(ports)) != ports:
        write_durably(directory / "ports.json", json.dumps(complete, indent=1).encode())
    return Layout(complete, hosts, with_server)


def _read(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{path} does not hold what a cluster writes there: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} does not hold what a cluster writes there")
    return found


def _checked(path: Path, found: dict[str, object]) -> Ports:
    ports: dict[str, dict[str, int]] = {}
    for part, numbers in found.items():
        if not isinstance(numbers, dict) or not numbers.keys() <= set(_NAMES.get(part, ())):
            raise UsageError(f"{path} holds other ports than those of this cluster")
        ports[part] = {name: int(number) for name, number in numbers.items()}
    return ports


def _with_free_ports(ports: Ports) -> Ports:
    """Return the ports with those that an earlier version did not need."""
    free = _iter_free({number for numbers in ports.values() for number in numbers.values()})
    return {
        part: {
            name: known if (known := ports.get(part, {}).get(name)) is not None else next(free)
            for name in names
        }
        for part, names in _NAMES.items()
    }


def _iter_free(taken: set[int]) -> Iterator[int]:
    seen = set(taken)
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
            candidate.bind((HERE, port))
        except OSError:
            return False
    return True
