"""The files that the cluster's programs read.

    config/security.toml   tokens and certificates, the same for every weed; see `weed_config`
    config/filer.toml      where the filers have the names of objects
    config/haproxy.cfg     the one address of both S3 gateways
    tls/, s3.json          certificates, and the one identity of S3
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
from storecluster.parts import FILERS, HOST, Ports, masters, s3_endpoint

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
    bind {host}:{port}
    default_backend gateways

backend gateways
    balance leastconn
    option httpchk GET /healthz
    default-server check inter 400ms fastinter 100ms fall 2 rise 2
    default-server on-marked-down shutdown-sessions
{servers}
"""


_SHELL = """\
#!/bin/sh
# The administrator's shell: commands on standard input, or typed; `help` lists them.
cd {config} && exec {weed} shell -master={masters}
"""


def write_all(directory: Path, ports: Ports, password: str, weed: str) -> None:
    """Write the files; only while no part runs."""
    WeedConfig(directory).prepare()
    filer = _FILER.format(
        host=HOST,
        port=ports["postgresql"]["port"],
        user=USER,
        password=password,
        database=DATABASE,
    )
    write_durably(directory / "config" / "filer.toml", filer.encode())
    servers = "\n".join(f"    server {name} {HOST}:{ports[name]['s3.port']}" for name in FILERS)
    haproxy = _HAPROXY.format(host=HOST, port=ports["haproxy"]["port"], servers=servers)
    write_durably(directory / "config" / "haproxy.cfg", haproxy.encode())
    config = shlex.quote(str(directory / "config"))
    shell = _SHELL.format(config=config, weed=shlex.quote(weed), masters=masters(ports))
    write_durably(directory / "weed-shell", shell.encode())
    (directory / "weed-shell").chmod(0o700)


def storage(directory: Path, ports: Ports, bucket: str) -> Storage:
    """Return the S3 server that the cluster is."""
    access_key, secret_key = WeedConfig(directory).credentials()
    return Storage(s3_endpoint(ports), access_key, secret_key, bucket)


def write_serve_settings(directory: Path, of: Storage) -> Path:
    """Write what `dserverfs serve --bucket NAME` reads in its environment; return the file."""
    path = directory / f"{of.bucket}.env"
    lines = (
        f"DTOOL_S3_ENDPOINT_{of.bucket}={of.endpoint}",
        f"DTOOL_S3_ACCESS_KEY_ID_{of.bucket}={of.access_key}",
        f"DTOOL_S3_SECRET_ACCESS_KEY_{of.bucket}={of.secret_key}",
    )
    write_durably(path, "".join(f"{line}\n" for line in lines).encode())
    return path
