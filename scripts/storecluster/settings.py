"""The files that the cluster's programs read.

    config/security.toml   tokens and certificates, the same for every weed; see `weed_config`
    config/filer.toml      where the filers have the names of objects
    config/haproxy*.cfg    the one address of both S3 gateways, and that of the server
    config/hosts.NAME      names and addresses, as a host has them
    tls/, s3.json          certificates of SeaweedFS, and the one identity of S3
    weed-shell             a program: the administrator's shell, such as `cluster.raft.ps`
    NAME.env               what `dserverfs serve --bucket NAME` has to know of it

Every weed has `config/` as its working directory, where it looks first.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from dserverfs.base.durable_files import write_durably
from dserverfs.server.store.signing import Storage
from dserverfs.server.store.weed_config import WeedConfig
from storecluster.database import DATABASE, USER
from storecluster.layout import ADDRESSES, FILERS, HERE, Layout
from storecluster.parts import masters
from storecluster.web import ServerFiles

_FILER = """\
[postgres2]
enabled = true
createTable = '''
  CREATE TABLE IF NOT EXISTS "%s" (
    dirhash   BIGINT,
    name      VARCHAR(65535),
    directory VARCHAR(65535),
    meta      bytea,
    PRIMARY KEY (dirhash, name)
  );
'''
hostname = "{host}"
port = {port}
username = "{user}"
password = "{password}"
database = "{database}"
schema = ""
# With PostgreSQL on another host: "verify-full", and sslrootcert.
sslmode = "disable"
connection_max_idle = 10
connection_max_open = 40        # of each filer: together fewer than max_connections
connection_max_lifetime_seconds = 300
"""

# A gateway that refuses connections costs no request: the next one is taken at once. One
# that hangs is found out by the checks, in less than two seconds.
_HAPROXY = """\
global
    maxconn 4000

defaults
    mode http
    timeout connect 1s
    timeout client  5m
    timeout server  5m
    timeout check   600ms
    timeout http-request    30s
    timeout http-keep-alive 2m
    retries 3
    option redispatch 1
    # Before the gateway has the request; what it began may be done already.
    retry-on conn-failure

frontend s3
    bind {place}{tls}
    default_backend gateways

backend gateways
    balance leastconn
    option httpchk GET /healthz
    default-server check inter 400ms fastinter 100ms fall 2 rise 2
    default-server on-marked-down shutdown-sessions
{servers}
"""

# gunicorn has few threads: a request is passed on when all of it is there.
_WEB = """
frontend web
    bind {place}{tls}
    option http-buffer-request
    option forwardfor
    default_backend gunicorn

backend gunicorn
    server gunicorn {gunicorn}
"""


_SHELL = """\
#!/bin/sh
# The administrator's shell: commands on standard input, or typed; `help` lists them.
cd {config} && exec {weed} shell -master={masters}
"""


def write_all(directory: Path, layout: Layout, password: str, weed: str) -> None:
    """Write the files; only while no part runs."""
    WeedConfig(directory).prepare()
    files = ServerFiles(directory)
    if layout.with_server:
        files.prepare(layout)
    filer = _FILER.format(
        host=layout.address("postgresql"),
        port=layout.ports["postgresql"]["port"],
        user=USER,
        password=password,
        database=DATABASE,
    )
    write_durably(directory / "config" / "filer.toml", filer.encode())
    for name in layout.proxies:
        write_durably(directory / "config" / f"{name}.cfg", _haproxy(name, layout, files).encode())
    for host in ADDRESSES if layout.hosts else ():
        names = directory / "config" / f"hosts.{host}"
        write_durably(names, layout.names_on(host).encode())
    config = shlex.quote(str(directory / "config"))
    shell = _SHELL.format(config=config, weed=shlex.quote(weed), masters=masters(layout))
    write_durably(directory / "weed-shell", shell.encode())
    (directory / "weed-shell").chmod(0o700)


def _haproxy(name: str, layout: Layout, files: ServerFiles) -> str:
    """Return the configuration of an HAProxy: S3, and the server where that is."""
    address = layout.address(name) if layout.hosts else HERE
    ports = layout.ports["haproxy"]
    tls = f" ssl crt {files.certificate} ssl-min-ver TLSv1.2" if layout.with_server else ""
    servers = "\n".join(f"    server {each} {layout.place(each, 's3.port')}" for each in FILERS)
    text = _HAPROXY.format(place=f"{address}:{ports['port']}", tls=tls, servers=servers)
    if layout.with_server and name in ("haproxy", "haproxy3"):
        gunicorn = f"{HERE}:{layout.ports['gunicorn']['port']}"
        text += _WEB.format(place=f"{address}:{ports['web']}", tls=tls, gunicorn=gunicorn)
    return text


def storage(directory: Path, layout: Layout, bucket: str) -> Storage:
    """Return the S3 server that the cluster is."""
    access_key, secret_key = WeedConfig(directory).credentials()
    return Storage(layout.s3_endpoint, access_key, secret_key, bucket)


def of_bucket(of: Storage) -> dict[str, str]:
    """Return the settings of a server that has the bucket of the cluster."""
    return {
        f"DTOOL_S3_ENDPOINT_{of.bucket}": of.endpoint,
        f"DTOOL_S3_ACCESS_KEY_ID_{of.bucket}": of.access_key,
        f"DTOOL_S3_SECRET_ACCESS_KEY_{of.bucket}": of.secret_key,
    }


def write_serve_settings(directory: Path, of: Storage) -> Path:
    """Write what `dserverfs serve --bucket NAME` reads in its environment; return the file."""
    path = directory / f"{of.bucket}.env"
    lines = (f"{name}={value}\n" for name, value in of_bucket(of).items())
    write_durably(path, "".join(lines).encode())
    return path
