"""A catalogue of an institute: how long its requests take, with PostgreSQL, and how large it gets.

    scripts/bench-database [--datasets N] [--users N] [--rounds N] [--explain]

A PostgreSQL of its own is filled by COPY: datasets evenly in base URIs, words by Zipf's law. Then
one process asks by dservercore's and our routes, without a web server between; of some rounds
the best is told, for a machine in use makes the others worthless. Nothing is left.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import os
import random
import resource
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tests.support.postgresql import running

OF_A_USER = 20  # base URIs
VOCABULARY = 20_000
ITEMS = 20
REQUESTS = 200  # of each kind in a round
MOUNTS = 200
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


def kinds(size: Size) -> list[Kind]:
    word_of = _words(random.Random(2))

    def page(last: int) -> Callable[[random.Random], tuple[str, str, Any]]:
        return lambda chance: ("GET", f"/uris?page_size=100&page={chance.randint(1, last)}", None)

    def search(text: Callable[[random.Random], str], sort: str = "") -> Any:
        return lambda chance: ("POST", f"/uris?page_size=100{sort}", {"free_text": text(chance)})

    def one(chance: random.Random) -> str:
        return dataset_uuid(chance.randrange(size.datasets))

    def post(body: Callable[[random.Random], Any], sort: str = "") -> Any:
        return lambda chance: ("POST", f"/uris?page_size=100{sort}", body(chance))

    def of_base_uri(chance: random.Random) -> Any:
        return {"base_uris": [size.base_uri(chance.randrange(size.base_uris))]}

    def of_creator(chance: random.Random) -> Any:
        return {"creator_usernames": [f"user{chance.randrange(size.users)}"]}

    def three(chance: random.Random) -> str:
        return " ".join(itertools.islice(word_of, 3))

    newest = "&sort=-frozen_at"
    return [
        Kind("page of a listing", 150, page(size.datasets * OF_A_USER // size.base_uris // 100)),
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
    ]


class Asker:
    """Asks an app as one of its users."""

    def __init__(self, flask: Flask, username: str) -> None:
        with flask.app_context():
            token = tokens.new_token(username, TOKEN_LIFE)
        self._flask = flask
        self._headers = {"Authorization": f"Bearer {token}"}

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


def refreshing(askers: list[Asker], threads: int) -> tuple[float, float]:
    """Return seconds for the first pages of all of them at once, and the longest wait of one."""
    begun_s = time.perf_counter()

    def ask(asker: Asker) -> float:
        asker.ask("GET", "/uris?page_size=100", None)
        return time.perf_counter() - begun_s

    with ThreadPoolExecutor(threads) as pool:
        waits = list(pool.map(ask, askers))
    return time.perf_counter() - begun_s, max(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=500_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--base-uris", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument(
        "--explain", action="store_true", help="print plans of what misses its goal"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left then, either
    size = Size(arguments.datasets, arguments.users, arguments.base_uris)
    with tempfile.TemporaryDirectory(prefix="dserverfs-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with running(directory) as cluster:
            address = cluster.new_database()
            settings = ServerSettings({DATABASE: address}.get)
            data = DataDirectory(directory / "data")
            with data.locked():
                flask = app.create(data, Stores(None, lambda bucket: None), settings)
                begun_s = time.perf_counter()
                filling = Process(target=fill, args=(address, size))
                filling.start()  # apart, lest its memory counts
                filling.join()
                assert filling.exitcode == 0
                held = cluster.execute(
                    "SELECT pg_size_pretty(sum(pg_database_size(datname))) FROM pg_database"
                )[0][0]
                print(f"{arguments.datasets:,} datasets, {arguments.users:,} users: {held}")
                print(f"filled in {time.perf_counter() - begun_s:.0f} s", flush=True)
                _report(flask, size, arguments)
                app.close(flask)


def _report(flask: Flask, size: Size, arguments: argparse.Namespace) -> None:
    for who, username in (("a user of 20 base URIs", "user7"), ("a user of all", "user0")):
        asker = Asker(flask, username)
        first_s = asker.ask("GET", "/uris?page_size=100", None) / 1000
        print(f"\n{who}: first page of all {first_s:.2f} s")
        for kind in kinds(size):
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
    askers = [
        Asker(flask, f"user{number}") for number in range(1, min(MOUNTS, arguments.users - 1) + 1)
    ]
    took_s, longest_s = min(refreshing(askers, 8) for _ in range(arguments.rounds))
    print(
        f"\n{len(askers)} mounts refresh at once: {took_s:.1f} s, the last after {longest_s:.1f} s"
    )
    print(f"signed URLs a second and core: {max(signed_urls_a_second() for _ in range(3)):,.0f}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory of this process at most: {memory:.0f} MiB")


if __name__ == "__main__":
    main()
