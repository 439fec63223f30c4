"""The database of a server: which it is, connections to it, and why there are none.

    SQLite        `dserver.sqlite` in the data directory, unless another one is named
    PostgreSQL    postgresql://USER@HOST/NAME, by the option or the setting, or as kept in the data
                  directory: so that all commands about it find the same database

libpq, PostgreSQL's own library, reads the address and connects: so all that it knows is taken,
several hosts, `sslmode` and `~/.pgpass` included. A password is in no text that this module
returns or raises.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dserverfs.base.errors import NotConnected, UsageError

if TYPE_CHECKING:
    from psycopg import Connection

LEAST_VERSION = 14
EXTRA = "postgresql"
POOL_SIZE = 10  # waitress has 8 threads, a worker of gunicorn about as many
MAX_OVERFLOW = 10
POOL_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 5
SQLITE_TIMEOUT_S = 20.0  # for which writers wait for each other
_SCHEMES = ("postgresql://", "postgres://")
_OPTIONS = " ".join(
    (
        # Beyond what any statement takes: 20 s for the words of a million paths.
        "-c statement_timeout=120s -c lock_timeout=20s",
        # A host that is gone lets go of its locks after 25 s.
        "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
        "-c jit=off",  # it takes longer than the statements here
        # Other requests have the other cores; and scans that share a table are in no order.
        "-c max_parallel_workers_per_gather=0",
        "-c work_mem=16MB",  # to sort the 20,000 datasets of a user in memory takes 7 MB
    )
)


class Address(NamedTuple):
    """A database, by a file or by what libpq takes."""

    file: Path | None
    conninfo: str  # may have a password

    @property
    def is_postgresql(self) -> bool:
        return self.file is None

    @property
    def sqlalchemy_url(self) -> str:
        """Return what SQLAlchemy takes; for PostgreSQL it says nothing, see `engine_options`."""
        if self.file is not None:
            return f"sqlite:///{self.file.absolute()}"
        return "postgresql+psycopg://"

    @property
    def shown(self) -> str:
        """Return a name for messages: without password and without parameters."""
        if self.file is not None:
            return str(self.file)
        known = _parsed(self.conninfo)
        user = f"{known['user']}@" if known.get("user") else ""
        port = f":{known['port']}" if known.get("port") else ""
        return f"postgresql://{user}{known.get('host', '')}{port}/{known.get('dbname', '')}"

    @property
    def has_password(self) -> bool:
        return self.is_postgresql and "password" in _parsed(self.conninfo)

    def without_password(self) -> str:
        from psycopg.conninfo import make_conninfo

        known = {key: value for key, value in _parsed(self.conninfo).items() if key != "password"}
        return make_conninfo("", **known)


def of_file(path: Path) -> Address:
    return Address(path, "")


def of_text(text: str, source: str) -> Address:
    """Return the database that a setting names; `source` is the setting, for messages.

    Raises UsageError for an address of another kind, and without the packages that it needs.
    """
    if not text.startswith(_SCHEMES):
        raise UsageError(f"{source}: must be postgresql://USER@HOST/NAME")
    address = Address(None, text)
    if not _parsed(text, source).get("dbname"):
        raise UsageError(f"{source}: names no database: postgresql://USER@HOST/NAME")
    return address


def of_kept(text: str) -> Address:
    return Address(None, text.strip())


def engine_options(address: Address) -> dict[str, Any]:
    """Return SQLAlchemy's options for the database. No message has values of statements."""
    if not address.is_postgresql:
        return {"hide_parameters": True}
    return {
        "creator": lambda: connect(address),
        "pool_size": POOL_SIZE,
        "max_overflow": MAX_OVERFLOW,
        "pool_timeout": POOL_TIMEOUT_S,
        "pool_recycle": 1800,
        "pool_pre_ping": True,  # so a database that was away is back with the next request
        "hide_parameters": True,
    }


def configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Write-ahead log: readers do not wait for writers. FULL: registered means on the disk."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA busy_timeout = {int(SQLITE_TIMEOUT_S * 1000)}")
    cursor.close()


def lock_engine_options() -> dict[str, Any]:
    """Return what is other for the connections of `locks`: one for each thread that has one."""
    return {
        "pool_size": 2,
        "max_overflow": POOL_SIZE + MAX_OVERFLOW,
        "isolation_level": "AUTOCOMMIT",
    }


def connect(address: Address) -> Connection[Any]:
    """Return a connection to PostgreSQL."""
    psycopg = _psycopg()
    own = _parsed(address.conninfo).get("options", "")
    connection: Connection[Any] = psycopg.connect(
        address.conninfo,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="dserverfs",
        options=f"{_OPTIONS} {own}".rstrip(),
        client_encoding="utf8",
        # A prepared statement is planned without its values, on which the plans here depend;
        # and a pool of connections between may not have it.
        prepare_threshold=None,
    )
    return connection


def check(address: Address) -> None:
    """Connect once. Raises NotConnected if PostgreSQL does not answer, which may pass, and
    UsageError if it refuses, or is none that can be used.
    """
    if not address.is_postgresql:
        return
    psycopg = _psycopg()
    try:
        with connect(address) as connection:
            version = connection.info.server_version // 10_000
            encoding = connection.info.parameter_status("server_encoding")
    except psycopg.OperationalError as error:
        refusal = f"database {address.shown}: {_said(error)}"
        ping = psycopg.pq.PGconn.ping(address.conninfo.encode())
        if ping == psycopg.pq.Ping.OK:  # it is there, and does not let us in
            raise UsageError(f"{refusal}; see its user, password and name") from error
        raise NotConnected(refusal) from error
    if version < LEAST_VERSION:
        raise UsageError(
            f"database {address.shown} is PostgreSQL {version}; dserverfs needs"
            f" {LEAST_VERSION} or newer"
        )
    if encoding != "UTF8":
        raise UsageError(
            f"database {address.shown} has the encoding {encoding}; make one by:"
            " createdb --encoding UTF8 --template template0 NAME"
        )


def known_base_uris(address: Address) -> list[str]:
    """Return the base URIs of a database; none if it has no tables yet.

    Asked before dservercore is there to ask. Raises as `check`.
    """
    statement = "SELECT base_uri FROM base_uri ORDER BY base_uri"
    if address.file is None:
        check(address)
        psycopg = _psycopg()
        with connect(address) as connection:
            try:
                return [row[0] for row in connection.execute(statement)]
            except psycopg.errors.UndefinedTable:
                return []
    if not address.file.exists():
        return []
    file = sqlite3.connect(address.file, timeout=SQLITE_TIMEOUT_S)
    try:
        return [row[0] for row in file.execute(statement)]
    except sqlite3.OperationalError:  # a first start was killed before the tables were there
        return []
    finally:
        file.close()


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:  # also if it is there, and libpq is not
        raise UsageError(
            f"PostgreSQL needs more packages: pip install 'dserverfs[{EXTRA}]' ({error})"
        ) from error
    return psycopg


def _parsed(conninfo: str, source: str = "") -> dict[str, str]:
    """Return the parts of an address; raises UsageError, which does not tell it, for none."""
    psycopg = _psycopg()
    from psycopg.conninfo import conninfo_to_dict

    try:
        known = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise UsageError(
            f"{source or 'the database'}: is no address of a PostgreSQL: postgresql://USER@HOST/NAME"
        ) from error
    return {key: str(value) for key, value in known.items() if value is not None}


def _said(error: Exception) -> str:
    """Return the last thing that libpq says, which tries each address of a host, without hints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    facts = [line for line in lines if not line.startswith(("Is the server", "Multiple"))]
    return facts[-1] if facts else "it does not answer"
