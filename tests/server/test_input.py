"""Input of every kind to every route: refused in JSON, never a fault of the server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from dservercore.extensions import sql_db
from sqlalchemy import delete, func, select

from dserverfs.server.database import passwords, sql
from dserverfs.server.database.tables import guess as guess_table
from dserverfs.server.request_limits import (
    DEFAULT_BYTES,
    LARGEST_BYTES,
    WITHOUT_TOKEN_BYTES,
    max_body_bytes,
)
from dserverfs.server.routes.guesses import MAX_OF_ONE, MAX_OF_PAIR, WINDOW_S, Guesses
from tests.server.test_permissions import LOGIN, ROUTES, body_of, path_of
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded

pytestmark = pytest.mark.filterwarnings("ignore:item_count not set")

DEEP = "[" * 900 + "]" * 900
DEEPER = '{"a":' * 100_000
BODIES = {
    "no JSON": b"{",
    "not UTF-8": b'{"username": "\xff"}',
    "a list": b"[1]",
    "null": b"null",
    "deep": f'{{"username": {DEEP}, "value": {DEEP}, "tags": {DEEP}}}'.encode(),
    "deeper": DEEPER.encode(),
    "digits": b'{"size_in_bytes": ' + b"9" * 5000 + b"}",
}
# Each in the place of any value, in bodies that are right but for it.
VALUES = [
    "\ud800",
    "\0",
    10**30,
    -(10**30),
    1e308,
    float("inf"),
    None,
    [],
    {},
    "x" * 10_000,
    True,
    "nan",
    "inf",
    "1e308",
    "",
]
QUERIES = [
    *(
        "page=100000000000000000000",
        "page=0",
        "page=-1",
        "page=x",
        "page=1e3",
        "page=" + "9" * 5000,
    ),
    *("page_size=-1", "page_size=0", "page_size=101", "page_size=100000000000000000000"),
    *("sort=x", "sort=%00", "uuids=x", "free_text=%00", "free_text=%22%ff", "page=%00"),
    "page=1000000000&page_size=100",
]
PARTS = ["%00", "%ff", "..", "%2e%2e", "\u0661", "x" * 5000, "%ed%a0%80", "a%0ab", "%22", "'"]


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """A client who may do all, so that input gets as far as it can."""
    client = AppClient(server, tmp_path_factory.mktemp("input"))
    client.add_user("boss", is_admin=True)
    client.grant("boss", search=True, register=True)
    yield client
    client.close()


@pytest.fixture(scope="module")
def uri(client: AppClient) -> str:
    return client.upload({"a.txt": b"alpha"}, tags=["t"], annotations={"n": 1})


def require_no_fault(answer: Any, asked: str) -> None:
    assert answer.status_code < 500, (asked, answer.data)
    if answer.status_code >= 400:
        assert isinstance(json.loads(answer.data), dict), (asked, answer.data)


def send(
    client: AppClient, method: str, path: str, body: bytes, kind: str = "application/json"
) -> Any:
    headers = {"Authorization": f"Bearer {client.token('boss')}"}
    return client.app.test_client().open(
        path, method=method, data=body, content_type=kind, headers=headers
    )


@pytest.mark.parametrize("what", list(BODIES))
def test_bodies_of_any_form_are_refused(client: AppClient, uri: str, what: str) -> None:
    for method, rule in ROUTES:
        if method in ("PUT", "POST"):
            answer = send(client, method, path_of(rule, uri), BODIES[what])
            require_no_fault(answer, f"{method} {rule}")
            if what != "a list" and rule not in ("/tags/<path:uri>/<tag>",):
                assert answer.status_code >= 400, rule


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "x"])
def test_bodies_of_other_types_are_no_fault(client: AppClient, uri: str, kind: str) -> None:
    for method, rule in ROUTES:
        if method in ("PUT", "POST"):
            path = path_of(rule, uri)
            for body in (b"", b"{}", b"a=b"):
                answer = send(client, method, path, body, kind)
                require_no_fault(answer, f"{method} {rule}")


@pytest.mark.parametrize("query", QUERIES)
def test_queries_of_any_form_are_no_fault(client: AppClient, uri: str, query: str) -> None:
    for method, rule in ROUTES:
        if method == "GET" or rule == "/uris":
            answer = client.request(
                method,
                f"{path_of(rule, uri)}?{query}",
                {"free_text": "a"} if method == "POST" else None,
                username="boss",
            )
            require_no_fault(answer, f"{method} {rule}?{query}")


@pytest.mark.parametrize("part", PARTS)
def test_paths_of_any_form_are_no_fault(client: AppClient, uri: str, part: str) -> None:
    odd_uris = (
        part,
        f"s3://{part}",
        f"{client.base_uri}/{part}",
        f"{uri}/{part}",
        f"s3%3A%2F%2F{part}",
    )
    for method, rule in ROUTES:
        if "<" not in rule:
            continue
        prefix = rule.partition("<")[0]
        paths = [prefix + odd for odd in odd_uris]
        if rule.endswith(("/<tag>", "/<name>", "/<identifier>")):
            paths.append(f"{prefix}{encoded(uri)}/{part}")
        for path in paths:
            body = b"{}" if method in ("PUT", "POST") else b""
            require_no_fault(send(client, method, path, body), f"{method} {path}")


def bodies_with(template: Any, value: Any) -> Iterator[Any]:
    """Yield the template with each of its values, at whatever depth, replaced by `value`."""
    yield value
    if isinstance(template, dict):
        for key, inner in template.items():
            for changed in bodies_with(inner, value):
                yield {**template, key: changed}
        if isinstance(value, str):
            yield {**template, value: 1}
    elif isinstance(template, list):
        for index, inner in enumerate(template):
            for changed in bodies_with(inner, value):
                yield [*template[:index], changed, *template[index + 1 :]]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:12])
def test_values_of_any_kind_are_no_fault(client: AppClient, uri: str, value: Any) -> None:
    others = {
        "/uris": {"free_text": "a", "uuids": [uri[-36:]], "tags": ["t"], "base_uris": ["s3://x"]},
        "/signed-urls/publish/<path:uri>": {"expiry_seconds": 1},
    }
    for method, rule in ROUTES:
        template = others.get(rule) or body_of(rule, uri)
        # To log in takes 60 ms; that it takes any text is tested by itself.
        if method in ("PUT", "POST") and template is not None and rule not in LOGIN:
            for body in bodies_with(template, value):
                answer = send(client, method, path_of(rule, uri), json.dumps(body).encode())
                require_no_fault(answer, f"{method} {rule} {ascii(body)[:500]}")


@pytest.mark.parametrize("value", ["\ud800", 1, None, []])
@pytest.mark.parametrize("key", ["username", "password"])
def test_login_takes_text_only(client: AppClient, key: str, value: Any) -> None:
    login = {"username": "x", "password": "x", key: value}

    answer = client.request("POST", "/token", login, username=None)

    assert answer.status_code in (400, 422)


def head_only(server: ServerHandle, method: str, path: str, *headers: str) -> tuple[int, bytes]:
    """Send the head of a request and no body; return the answer."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers])
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    status = int(answer.split()[1])
    return status, answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("method", "path", "refusal"),
    [
        ("POST", "/token", 413),
        ("POST", "/auth/token", 413),
        ("PUT", "/uris/x", 401),
        ("POST", "/signed-urls/upload/x", 401),
        ("GET", "/me", 401),
    ],
)
@pytest.mark.parametrize("token", ["", "x", "a.b.c", "expired"])
def test_large_bodies_without_a_token_are_not_read(
    server: ServerHandle, method: str, path: str, refusal: int, token: str
) -> None:
    headers = [f"Content-Length: {WITHOUT_TOKEN_BYTES + 1}"]
    if token == "expired":
        token = server.token_for(server.username, exp=1)
    if token:
        headers.append(f"Authorization: Bearer {token}")

    status, body = head_only(server, method, path, *headers)

    assert status == refusal
    assert json.loads(body)["code"] == refusal


def test_body_without_a_length_is_read_to_the_limit(server: ServerHandle) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(chunk + chunk)

        assert connection.recv(4096).split()[1] == b"413"


def test_limits_are_those_of_the_route(server: ServerHandle) -> None:
    bearer = f"Authorization: Bearer {server.token}"
    for path, limit in (("/me", DEFAULT_BYTES), ("/signed-urls/upload/x", LARGEST_BYTES)):
        status, _ = head_only(server, "POST", path, bearer, f"Content-Length: {limit + 1}")
        assert status == 413
    # One that is within is read.
    body = json.dumps({"identifiers": ["x" * (WITHOUT_TOKEN_BYTES * 2)]})
    path = f"/signed-urls/items/{quote('s3://nowhere/x', safe='')}"
    answer = server.post(path, json.loads(body))
    assert answer.status_code == 403


def test_heads_that_are_no_http_are_answered_in_json(server: ServerHandle) -> None:
    status, body = head_only(server, "GET", "/me", "Content-Length: x")

    assert status == 400
    assert json.loads(body)["status"] == "Bad Request"


def test_everybody_may_send_a_login_and_nobody_without_limit() -> None:
    for method, path in (("POST", "/token"), ("PUT", "/uris/x"), ("GET", "/"), ("POST", "/x")):
        assert max_body_bytes(method, path, has_token=False) == WITHOUT_TOKEN_BYTES
        assert DEFAULT_BYTES <= max_body_bytes(method, path, has_token=True) <= LARGEST_BYTES


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def no_guesses(client: AppClient) -> Iterator[None]:
    """Be in the app's context; nobody has guessed, or will have."""
    with client.app.app_context():
        sql.execute(delete(guess_table))
        sql_db.session.commit()
        yield
        sql.execute(delete(guess_table))
        sql_db.session.commit()


@pytest.mark.usefixtures("no_guesses")
def test_guesses_of_one_at_one_address_are_limited_over_all_processes() -> None:
    clock = Clock()
    one, other = Guesses(clock), Guesses(clock)  # as two processes have one each
    for _ in range(MAX_OF_PAIR // 2):
        assert one.begin("doc", "::1").wait_s == 0
        assert other.begin("doc", "::1").wait_s == 0
        clock.now += 2

    for guesses in (one, other):
        assert guesses.begin("doc", "::1").wait_s == WINDOW_S - MAX_OF_PAIR
    assert one.begin("happy", "::1").wait_s == 0
    assert one.begin("doc", "10.0.0.1").wait_s == 0
    clock.now += WINDOW_S - MAX_OF_PAIR
    assert one.begin("doc", "::1").wait_s == 0


@pytest.mark.usefixtures("no_guesses")
def test_guesses_by_a_clock_that_is_ahead_count() -> None:
    clock, ahead = Clock(), Clock()
    ahead.now += WINDOW_S
    for _ in range(MAX_OF_PAIR):
        Guesses(ahead).begin("doc", "::1")

    assert Guesses(clock).begin("doc", "::1").wait_s == WINDOW_S


@pytest.mark.usefixtures("no_guesses")
def test_right_guesses_do_not_count() -> None:
    guesses = Guesses(Clock())
    for _ in range(2 * MAX_OF_PAIR):
        guess = guesses.begin("doc", "::1")
        assert guess.wait_s == 0
        guesses.was_right(guess)

    assert sql.value(select(func.count()).select_from(guess_table)) == 0


@pytest.mark.usefixtures("no_guesses")
@pytest.mark.parametrize("of", ["user", "address"])
def test_guesses_of_one_from_or_with_many_are_limited(of: str) -> None:
    guesses = Guesses(Clock())
    pairs = [("doc", f"address {n}") if of == "user" else (f"user {n}", "::1") for n in range(101)]
    for pair in pairs[:MAX_OF_ONE]:
        assert guesses.begin(*pair).wait_s == 0

    assert guesses.begin(*pairs[-1]).wait_s == WINDOW_S
    assert guesses.begin("another", "elsewhere").wait_s == 0


@pytest.mark.usefixtures("no_guesses")
def test_guesses_keep_no_name_and_not_for_ever() -> None:
    clock = Clock()
    Guesses(clock).begin("my password, by mistake", "::1")
    assert "mistake" not in str(sql.execute(select(guess_table)).all())
    clock.now += 2 * 3600

    Guesses(clock).begin("doc", "::1")

    assert sql.value(select(func.count()).select_from(guess_table)) == 1


def test_wrong_passwords_are_429_and_the_right_one_then_too(client: AppClient) -> None:
    client.add_user("sleepy")
    with client.app.app_context():
        passwords.set_password("sleepy", "right")
        sql_db.session.commit()

    def login(password: str) -> Any:
        body = {"username": "sleepy", "password": password}
        return client.app.test_client().post("/token", json=body)

    assert login("right").status_code == 200
    with ThreadPoolExecutor(8) as pool:  # at once they are counted, too
        answers = list(pool.map(login, ["wrong"] * (2 * MAX_OF_PAIR)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [401] * MAX_OF_PAIR + [429] * MAX_OF_PAIR
    refused = login("right")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= WINDOW_S
    assert "too many wrong passwords" in refused.json["message"]
