"""`dserverfs site-cache`: prints the nginx configuration of a cache that a site's hosts share."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import Commands, example, say, size

TEMPLATE = Path(__file__).parents[1] / "site_cache" / "nginx.conf"
SLICE = "4m"
MAX_MIN_FREE_BYTES = 1024**3
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"  # Debian's
_HOST = re.compile(r"(\*\.)?([a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::(\d{1,5}))?\Z")
_ADDRESS = re.compile(r"(?:[0-9.]+|\[[0-9a-f:]+\]|[a-z0-9.-]+)\Z")
# Of a file's name in quotes: neither those, nor variables or comments of nginx.
_PATH = re.compile(r"/[A-Za-z0-9 ._,:@+=/-]+\Z")
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "site-cache", help="print the nginx configuration of a cache that hosts share"
    )
    parser.description = (
        "Print a configuration for Debian's nginx: a cache near many hosts, of what they read from"
        " stores by signed URLs. The store judges each request by one byte; the bytes come from"
        " the cache. Clients use it by DSERVER_SITE_CACHE. See dserverfs help site_cache."
    )
    parser.add_argument(
        "--store",
        dest="stores",
        metavar="URL",
        action="append",
        type=store_of,
        required=True,
        help="a store as signed URLs name it, https://store.example.org; with a bucket in the"
        " host's name, https://*.s3.example.org; may be given several times",
    )
    parser.add_argument(
        "--listen",
        metavar="[ADDRESS:]PORT",
        type=_listening,
        default="8470",
        help="where clients reach it (default: port 8470 of all addresses)",
    )
    parser.add_argument(
        "--inner-port",
        metavar="PORT",
        type=_port,
        help="of 127.0.0.1, for itself (default: the port above it)",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=_path,
        default="/var/cache/dserverfs-site-cache",
        help="where objects are kept (default: %(default)s); nginx makes it",
    )
    parser.add_argument(
        "--size",
        metavar="SIZE",
        type=size,
        default="100G",
        help="how much is kept (default: 100G); what was read longest ago goes first",
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        type=_path,
        default=CA_FILE,
        help="the authorities of the stores' certificates (default: %(default)s)",
    )
    parser.add_argument(
        "--log-directory",
        metavar="DIR",
        type=_path,
        default="/var/log/nginx",
        help="where nginx logs (default: %(default)s)",
    )
    parser.epilog = example("dserverfs site-cache --store https://store.example.org --size 2T")
    parser.set_defaults(command=_run)


class Store(NamedTuple):
    """A store that the cache may ask, as the Host of a signed URL names it."""

    scheme: str
    host: str
    port: int
    has_buckets_before: bool  # BUCKET.HOST

    def __str__(self) -> str:
        return f"{self.scheme}://{'*.' if self.has_buckets_before else ''}{self.host}:{self.port}"

    @property
    def hosts(self) -> list[str]:
        """Return the values of the Host header: without the port where that is the usual one."""
        ports = [f":{self.port}"]
        if self.port == {"http": 80, "https": 443}[self.scheme]:
            ports.append("")
        return [f"{self.host}{port}" for port in ports]

    def as_map_keys(self) -> list[str]:
        """Return a pattern for each host: in its tables nginx has no room for long names."""
        before = rf"{_BUCKET}\." if self.has_buckets_before else ""
        return [f'"~*^{before}{re.escape(host)}$"' for host in self.hosts]


def store_of(text: str) -> Store:
    """Return the store that an argument names; raises ArgumentTypeError."""
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    match = _HOST.match(parts.netloc.lower())
    if parts.scheme not in ("http", "https") or match is None or parts.path not in ("", "/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not https://HOST[:PORT]")
    if parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} has more than a host and a port")
    buckets, host, port_text = match.groups()
    port = _port(port_text) if port_text else {"http": 80, "https": 443}[parts.scheme]
    if parts.scheme == "https" and re.fullmatch(r"[0-9.]+|\[.*\]", host):
        raise argparse.ArgumentTypeError(
            f"{text!r}: nginx compares a certificate with a name, not with an address"
        )
    return Store(parts.scheme, host, port, buckets is not None)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _listening(text: str) -> str:
    address, _, port = text.rpartition(":")
    _port(port)
    if address and not _ADDRESS.match(address.lower()):
        raise argparse.ArgumentTypeError(f"{text!r} is not [ADDRESS:]PORT")
    return text


def _path(text: str) -> str:
    if not _PATH.match(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no absolute path of letters, digits, spaces and ._,:@+=-"
        )
    return text


def _run(arguments: argparse.Namespace) -> int:
    port = int(arguments.listen.rpartition(":")[2])
    inner_port = arguments.inner_port or port + 1
    if inner_port in (port, 65536):
        raise UsageError(f"--inner-port {inner_port}: another port than that of --listen is needed")
    stores: list[Store] = list(dict.fromkeys(arguments.stores))
    for store in stores:
        if store.scheme == "http":
            say(
                f"note: between this cache and {store} content and signatures can be read",
                file=sys.stderr,
            )
    values = {
        "COMMAND": _command(arguments, stores),
        "LISTEN": arguments.listen,
        "INNER_PORT": str(inner_port),
        "DIRECTORY": arguments.directory,
        "SIZE": f"{max(arguments.size // 1024**2, 1)}m",
        "MIN_FREE": f"{max(min(arguments.size // 4, MAX_MIN_FREE_BYTES) // 1024**2, 1)}m",
        "SLICE": SLICE,
        "CA_FILE": arguments.ca_file,
        "ACCESS_LOG": f"{arguments.log_directory}/dserverfs-site-cache.log",
        "ERROR_LOG": f"{arguments.log_directory}/dserverfs-site-cache-error.log",
        **_of_stores(stores),
    }
    text = TEMPLATE.read_text()
    print(re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], text), end="")
    return 0


def _command(arguments: argparse.Namespace, stores: list[Store]) -> str:
    """Return the command that prints the same again."""
    words = ["dserverfs", "site-cache", "--listen", arguments.listen]
    for store in stores:
        words += ["--store", str(store)]
    words += ["--directory", arguments.directory, "--size", f"{arguments.size // 1024**2}M"]
    return shlex.join(words)


def _of_stores(stores: list[Store]) -> dict[str, str]:
    """Return the parts of the configuration that have a line or a block for each store."""
    origins, names, upstreams = [], [], []
    for number, store in enumerate(stores):
        for key in store.as_map_keys():
            origins.append(f"    {key} {store.scheme}://dserverfs_store_{number};")
            names.append(f"    {key} {store.host};")
        upstreams.append(
            f"upstream dserverfs_store_{number} {{\n"
            f"    server {store.host}:{store.port};\n"
            "    keepalive 64;\n"
            "}"
        )
    return {
        "STORES": "\n".join(origins),
        "NAMES": "\n".join(names),
        "UPSTREAMS": "\n".join(upstreams),
    }
