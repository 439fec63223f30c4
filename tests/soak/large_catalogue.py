"""A catalogue of an institute: how long its requests take, with PostgreSQL, and how large it gets.

    scripts/bench-database [--datasets N] [--users N] [--rounds N] [--keep DIR] [--explain]

A PostgreSQL of its own is filled: datasets evenly in base URIs, words by Zipf's law. Then one
process asks by dservercore's and our routes, without a web server between; of some rounds the
best is told, for a machine in use makes the others worthless. At last gunicorn serves it to
mounts. Nothing is left, but in DIR with `--keep`, which is measured again without the filling.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import random
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import Process
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from dservercore.extensions import sql_db
from flask import Flask
from sqlalchemy import event

from dserverfs.base.model import identifier_of
from dserverfs.server import app
from dserverfs.server.database import full_text, tokens
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.settings import DATABASE, ServerSettings
from dserverfs.server.store.signing import Storage
from dserverfs.server.store.stores import Stores
from dserverfs.server.web import TOKEN_LIFE
from tests.soak import large_server
from tests.support.postgresql import Cluster, programs

OF_A_USER = 20  # base URIs
VOCABULARY = 20_000
ITEMS = 20
REQUESTS = 200  # of each kind in a round
MOUNTS = 200
_DATABASE = "institute"
# As the documentation has them: a quarter of the memory of a machine with 4 GiB.
_SETTINGS = ("shared_buffers=1GB", "max_wal_size=4GB")
_START_S = 1_600_000_000


class Size(NamedTuple):
    """How large the catalogue is."""

    datasets: int
    users: int
    base_uris: int

    def base_uri(self, number: int) -> str:
        """Return the base URI of a dataset."""
        return f"s3://bucket-{number % self.base_uris}"


class Kind(NamedTuple):
    """A kind of request, as `make` makes another one each time."""

    name: str
    goal_ms: float
    make: Callable[[random.Random], tuple[str, str, Any]]  # method, path, body


def _words(chance: random.Random) -> Iterator[str]:
    """Yield words, each as often as Zipf says."""
    weights = list(itertools.accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    while True:
        yield from (
            f"w{number}"
            for number in chance.choices(range(VOCABULARY), cum_weights=weights, k=1000)
        )


def dataset_uuid(number: int) -> str:
    """Return a uuid of digits, for which SQL and FTS5 have the same words."""
    digits = hashlib.md5(str(number).encode()).hexdigest()
    return str(uuid.UUID(digits.translate(str.maketrans("abcdef", "012345"))))


def fill(address: str, size: Size) -> None:
    """Make users, base URIs, rights and datasets; build the index of words afterwards."""
    chance = random.Random(1)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("DROP INDEX dserverfs_search_words_words")
        connection.execute("SET maintenance_work_mem = '512MB'")
        connection.execute("SET statement_timeout = 0")
        values = {
            **size._asdict(),
            "start": _START_S,
            "items": ITEMS,
            "vocabulary": VOCABULARY,
            "manifest": gzip.compress(json.dumps({"items": {}}).encode()),
        }
        for statement in _SIZED:
            connection.execute(statement, values)
        rights = [(0, number) for number in range(size.base_uris)] + [
            (user, base)
            for user in range(1, size.users)
            for base in chance.sample(range(size.base_uris), OF_A_USER)
        ]
        for table in ("search_permissions", "register_permissions"):
            _copy(connection, f"{table} (user_id, base_uri_id)", rights)
        for table in ('"user"', "base_uri", "dserverfs_search"):
            connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
            )
        _check_words(connection)
        connection.execute("VACUUM ANALYZE")


# Words by Zipf's law: the logarithm of their rank is even. `n` is a dataset.
_TABLES_OF = "FROM generate_series(0, %(datasets)s - 1) AS n"
_UUID = "translate(md5(n::text), 'abcdef', '012345')::uuid"
_BASE = "'s3://bucket-' || n %% %(base_uris)s"
_WORD = "'w' || floor(exp(random() * ln(%(vocabulary)s))) - 1"
_SIZED = (
    'INSERT INTO "user" (id, username, is_admin)'
    " SELECT n, 'user' || n, n = 0 FROM generate_series(0, %(users)s - 1) AS n",
    "INSERT INTO base_uri (id, base_uri)"
    " SELECT n, 's3://bucket-' || n FROM generate_series(0, %(base_uris)s - 1) AS n",
    "INSERT INTO dserverfs_search (id, uri, uuid, base_uri, name, creator_username, frozen_at,"
    f" created_at, number_of_items, size_in_bytes, tags) SELECT n, {_BASE} || '/' || {_UUID},"
    f" {_UUID}, {_BASE}, {_WORD} || '-' || n, 'user' || n %% %(users)s, %(start)s + n,"
    f" %(start)s + n, %(items)s, 1, '[\"t' || n %% 50 || '\"]' {_TABLES_OF}",
    "INSERT INTO dserverfs_search_tag (tag, id) SELECT 't' || n %% 50, n " + _TABLES_OF,
    "INSERT INTO dataset (base_uri_id, uri, uuid, name, creator_username, frozen_at, created_at,"
    " number_of_items, size_in_bytes) SELECT id %% %(base_uris)s, uri, uuid, name,"
    " creator_username, to_timestamp(frozen_at) AT TIME ZONE 'UTC', to_timestamp(created_at) AT"
    " TIME ZONE 'UTC', number_of_items, size_in_bytes FROM dserverfs_search",
    "INSERT INTO dserverfs_description (uri, readme, annotations, tags, manifest)"
    " SELECT uri, '\"about it\"', '{}', '[]', %(manifest)s::bytea FROM dserverfs_search",
    # Words of the name, address, uuid, creator, README and tag, as _check_words compares them.
    "INSERT INTO dserverfs_search_words SELECT id, 0, array(SELECT DISTINCT unnest(found || ('/' ||"
    " base_uri))), ' ' || array_to_string(found, ' ') || ' ' FROM (SELECT id, base_uri,"
    " string_to_array(translate(name, '-', ' ') || ' s3 bucket ' || id %% %(base_uris)s"
    " || translate(' ' || uuid || ' ' || uuid, '-', ' ') || ' ' || creator_username, ' ')"
    f" || array(SELECT {_WORD} FROM generate_series(1, 15) WHERE id >= 0)"
    " || ('t' || id %% 50) AS found FROM dserverfs_search) AS texts",
    "INSERT INTO dserverfs_search_words SELECT id, 1, ARRAY['/' || base_uri, 'run', 'imag', 'tif']"
    " || numbers, (SELECT ' ' || string_agg('run imag ' || number || ' tif', ' ') || ' '"
    " FROM unnest(numbers) AS number) FROM dserverfs_search, (SELECT array_agg(lpad(k::text, 3,"
    " '0')) AS numbers FROM generate_series(0, %(items)s - 1) AS k) AS items",
    "CREATE INDEX dserverfs_search_words_words ON dserverfs_search_words USING gin (words)",
)


def _check_words(connection: psycopg.Connection[Any]) -> None:
    """Compare the words that SQL made with those that a server makes of the same texts."""
    found = connection.execute(
        "SELECT name, uri, uuid, creator_username, in_order FROM dserverfs_search"
        " JOIN dserverfs_search_words USING (id) WHERE id = 7 AND kind = 0"
    ).fetchone()
    assert found is not None
    *texts, in_order = found
    assert in_order.startswith(f" {' '.join(full_text.words_in(chr(10).join(texts)))} "), found


def _copy(connection: psycopg.Connection[Any], what: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {what} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def kinds(size: Size, own: Sequence[int]) -> list[Kind]:
    """Return what is asked by a user of the base URIs of these numbers."""
    word_of = _words(random.Random(2))

    def page(last: int) -> Callable[[random.Random], tuple[str, str, Any]]:
        return lambda chance: ("GET", f"/uris?page_size=100&page={chance.randint(1, last)}", None)

    def search(text: Callable[[random.Random], str], sort: str = "") -> Any:
        return lambda chance: ("POST", f"/uris?page_size=100{sort}", {"free_text": text(chance)})

    def one(chance: random.Random) -> str:
        of_base_uri = chance.randrange(size.datasets // size.base_uris)
        return dataset_uuid(of_base_uri * size.base_uris + chance.choice(own))

    def post(body: Callable[[random.Random], Any], sort: str = "") -> Any:
        return lambda chance: ("POST", f"/uris?page_size=100{sort}", body(chance))

    def of_base_uri(chance: random.Random) -> Any:
        return {"base_uris": [size.base_uri(chance.choice(own))]}

    def of_creator(chance: random.Random) -> Any:
        return {"creator_usernames": [f"user{chance.randrange(size.users)}"]}

    def three(chance: random.Random) -> str:
        return " ".join(itertools.islice(word_of, 3))

    newest = "&sort=-frozen_at"
    return [
        Kind("page of a listing", 150, page(size.datasets * OF_A_USER // size.base_uris // 100)),
        Kind(
            "first page, newest first",
            150,
            lambda chance: ("GET", f"/uris?page_size=100{newest}", None),
        ),
        Kind("page of a base URI, newest first", 150, post(of_base_uri, newest)),
        Kind("search: a word", 150, search(lambda chance: next(word_of))),
        Kind("search: three words, newest first", 150, search(three, newest)),
        Kind("search: the most frequent word", 150, search(lambda chance: "w0")),
        Kind("search: a phrase", 150, search(lambda chance: f'"{next(word_of)} {next(word_of)}"')),
        Kind("search: a uuid as text", 150, search(one)),
        Kind("search: a word of every path", 150, search(lambda chance: "tif")),
        Kind("search: a tag", 150, post(lambda chance: {"tags": [f"t{chance.randrange(50)}"]})),
        Kind("search: a creator", 150, post(of_creator)),
        Kind("by uuid", 150, lambda chance: ("GET", f"/uuids/{one(chance)}", None)),
        Kind("user's facts", 150, lambda chance: ("GET", "/me", None)),
        Kind("summary of all", 1000, lambda chance: ("GET", "/me/summary", None)),
    ]


class Asker:
    """Asks an app as one of its users."""

    def __init__(self, flask: Flask, username: str) -> None:
        with flask.app_context():
            token = tokens.new_token(username, TOKEN_LIFE)
        self._flask = flask
        self._headers = {"Authorization": f"Bearer {token}"}

    def own(self) -> list[int]:
        """Return the numbers of the base URIs that the user may search."""
        answer = self._flask.test_client().get("/me", headers=self._headers)
        base_uris = answer.get_json()["search_permissions_on_base_uris"]
        return [int(base_uri.rpartition("-")[2]) for base_uri in base_uris]

    def ask(self, method: str, path: str, body: Any) -> float:
        """Return the milliseconds that an answer took."""
        begun_s = time.perf_counter()
        answer = self._flask.test_client().open(
            path, method=method, json=body, headers=self._headers
        )
        took_ms = (time.perf_counter() - begun_s) * 1000
        assert answer.status_code == 200, (path, body, answer.text)
        return took_ms


class Took(NamedTuple):
    """How long a kind of request took in a round, in milliseconds."""

    last_ms: float  # the 99th percentile
    median_ms: float
    processor_ms: float  # of one request, here and in PostgreSQL: what it takes on an idle machine


def measure(asker: Asker, kind: Kind, rounds: int, count: int) -> Took:
    """Return the best round."""
    best = []
    for number in range(rounds):
        chance = random.Random(number)
        before_s = _processor_s()
        took = sorted(asker.ask(*kind.make(chance)) for _ in range(count))
        processor_ms = (_processor_s() - before_s) / count * 1000
        last_ms = took[min(len(took) - 1, len(took) * 99 // 100)]
        best.append(Took(last_ms, took[len(took) // 2], processor_ms))
    return min(best)


def _processor_s() -> float:
    """Return the processor time of this process and of all below it that run, in seconds."""
    pids, total = [os.getpid()], 0.0
    while pids:
        pid = pids.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            pids.extend(map(int, (task / "children").read_text().split()))
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def explain_slow(flask: Flask, asker: Asker, kind: Kind) -> None:
    """Print the plans of a request's statements that take long."""
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "EXPLAIN" not in statement:
            with connection.connection.cursor() as another:
                another.execute("EXPLAIN (ANALYZE, BUFFERS) " + statement, parameters)
                plans.append(statement + "\n" + "\n".join(row[0] for row in another.fetchall()))

    with flask.app_context():
        engine = sql_db.engine
    event.listen(engine, "before_cursor_execute", explain)
    asker.ask(*kind.make(random.Random(0)))
    event.remove(engine, "before_cursor_execute", explain)
    for plan in sorted(plans, key=len)[-2:]:
        print(plan, "\n")


def signed_urls_a_second() -> float:
    """Return how many URLs of items one core signs in a second of its time."""
    storage = Storage("http://127.0.0.1:9", "key", "secret", "bucket")
    signer = ObjectStore(storage).signer(3600)
    keys = [identifier_of(str(number)) for number in range(20_000)]
    begun_s = time.process_time()
    for key in keys:
        signer.get_url("bucket", key)
    return len(keys) / (time.process_time() - begun_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=500_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--base-uris", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="of each kind in a round; 0: none"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds whose name has it")
    parser.add_argument("--mounts", type=int, default=MOUNTS, help="that refresh at once")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="fill a database there, or measure the one there"
    )
    parser.add_argument(
        "--explain", action="store_true", help="print plans of what misses its goal"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left then, either
    with contextlib.ExitStack() as stack:
        directory: Path = arguments.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="dserverfs-bench-"))
        )
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        cluster = stack.enter_context(_cluster(directory))
        _measure_all(cluster, directory, arguments)


@contextlib.contextmanager
def _cluster(directory: Path) -> Iterator[Cluster]:
    """Run a PostgreSQL with its files in a directory, which may have them already."""
    bin_directory = programs()
    assert bin_directory is not None, "PostgreSQL is not installed: apt-get install postgresql"
    cluster = Cluster(directory / "postgresql", bin_directory)
    if not cluster.is_made:
        cluster.create()
    try:
        cluster.start(*_SETTINGS)
        yield cluster
    finally:
        cluster.stop(timeout_s=60)


def _measure_all(cluster: Cluster, directory: Path, arguments: argparse.Namespace) -> None:
    size = Size(arguments.datasets, arguments.users, arguments.base_uris)
    is_filled = bool(cluster.execute(f"SELECT 1 FROM pg_database WHERE datname = '{_DATABASE}'"))
    if not is_filled:
        cluster.execute(f"CREATE DATABASE {_DATABASE}")
    address = cluster.address_of(_DATABASE)
    data = DataDirectory(directory / "server")
    with data.locked():
        settings = ServerSettings({DATABASE: address}.get)
        flask = app.create(data, Stores(None, lambda bucket: None), settings)
        if not is_filled:
            begun_s = time.perf_counter()
            filling = Process(target=fill, args=(address, size))
            filling.start()  # apart, lest its memory counts
            filling.join()
            assert filling.exitcode == 0
            print(f"filled in {time.perf_counter() - begun_s:.0f} s", flush=True)
        held = cluster.execute(f"SELECT pg_size_pretty(pg_database_size('{_DATABASE}'))")[0][0]
        print(f"{size.datasets:,} datasets, {size.users:,} users: {held}", flush=True)
        if arguments.requests:
            _report_requests(flask, size, arguments)
        app.close(flask)
    print(f"signed URLs a second and core: {max(signed_urls_a_second() for _ in range(3)):,.0f}")
    _report_server(directory, address, arguments)


def _report_requests(flask: Flask, size: Size, arguments: argparse.Namespace) -> None:
    for who, username in (("a user of 20 base URIs", "user7"), ("a user of all", "user0")):
        asker = Asker(flask, username)
        first_s = asker.ask("GET", "/uris?page_size=100", None) / 1000
        print(f"\n{who}: first page of all {first_s:.2f} s")
        for kind in kinds(size, asker.own()):
            if arguments.only not in kind.name:
                continue
            count = arguments.requests if who.endswith("URIs") else arguments.requests // 4
            took = measure(asker, kind, arguments.rounds, count)
            verdict = "" if took.last_ms <= kind.goal_ms else f"  > {kind.goal_ms:.0f}"
            print(
                f"  {kind.name:34} {took.median_ms:7.1f} ms  p99 {took.last_ms:7.1f} ms"
                f"  processor {took.processor_ms:6.1f} ms{verdict}",
                flush=True,
            )
            if verdict and arguments.explain:
                explain_slow(flask, asker, kind)


def _report_server(directory: Path, address: str, arguments: argparse.Namespace) -> None:
    """Print what only a server with clients shows."""
    with (
        tempfile.TemporaryDirectory(prefix="dserverfs-bench-") as name,
        large_server.running(directory / "server", address, directory / "gunicorn.log") as server,
    ):
        scratch = Path(name)
        print("\ngunicorn with 2 workers of 8 threads:")
        pages = [large_server.ask_pages(server, "user7", 100) for _ in range(arguments.rounds)]
        print(f"  99 % of pages of all, over HTTP, within {min(pages):.0f} ms")
        mounts = [
            large_server.mount_and_list(server, "user7", scratch) for _ in range(arguments.rounds)
        ]
        took_s, processor_s, names = min(mounts)
        print(
            f"  mount of a base URI and its first listing, {names} names: {took_s:.2f} s,"
            f" {processor_s:.2f} s of processor time"
        )
        if arguments.mounts:
            found = large_server.refresh(server, arguments.mounts, scratch)
            print(
                f"  {arguments.mounts} mounts list {found.datasets:,} datasets at once:"
                f" half within {found.median_s:.1f} s, all within {found.all_s:.1f} s;"
                f" {found.server_s:.1f} s of processor time of the server,"
                f" {found.given_up} gave up"
            )
        for path in ("/uris?page_size=100", "/me/summary") * 4:
            server.get(path, token=server.token_for("user0")).raise_for_status()
        print(f"  memory of a worker at most: {large_server.memory_mib(server):.0f} MiB")


if __name__ == "__main__":
    main()
