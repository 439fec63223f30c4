"""Every route, asked with every kind of token that is none: refused, told nothing, no fault."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from dservercore.extensions import sql_db
from dservercore.sql_models import User

from dserverfs.server.database import tokens
from tests.server.test_permissions import (
    ANYBODY,
    KNOWN,
    LOGIN,
    ROUTES,
    SECRET,
    all_of,
    body_of,
    path_of,
    secret_dataset,
)
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, new_uuid

pytestmark = pytest.mark.filterwarnings("ignore:item_count not set")
HOUR = datetime.timedelta(hours=1)
# Behind a right token each is refused all the same.
OF_NO_TOKEN = {route for route, who in ROUTES.items() if who == ANYBODY}


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("tokens"))
    client.add_user("boss", is_admin=True)
    client.grant("boss", search=True, register=True)
    yield client
    client.close()


@pytest.fixture(scope="module")
def uri(client: AppClient) -> str:
    return secret_dataset(client)


def claims(**others: Any) -> dict[str, Any]:
    now = int(time.time())
    right = {"sub": "boss", "iat": now, "nbf": now, "exp": now + 3600, "jti": new_uuid()}
    return {**right, "type": "access", "fresh": False, **others}


def signed(client: AppClient, said: dict[str, Any], **options: Any) -> str:
    return jwt.encode(
        said, client.app.config["JWT_PRIVATE_KEY"], **{"algorithm": "RS256", **options}
    )


def _part(value: Any) -> str:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def with_public_key(client: AppClient) -> str:
    """Signed by everybody's key, as if it were a password."""
    text = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims())}"
    key = client.app.config["JWT_PUBLIC_KEY"].encode()
    return f"{text}.{_part(hmac.digest(key, text.encode(), hashlib.sha256))}"


def of_another_server(client: AppClient) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(claims(), key, algorithm="RS256")


def changed(client: AppClient) -> str:
    head, _, signature = signed(client, claims(sub="grumpy")).split(".")
    return f"{head}.{_part(claims())}.{signature}"


def revoked(client: AppClient) -> str:
    client.add_user("revoked", is_admin=True)
    client.grant("revoked", search=True, register=True)
    with client.app.app_context():
        token = tokens.new_token("revoked", HOUR)
        tokens.revoke("revoked")
        sql_db.session.commit()
    return token


def of_one_removed(client: AppClient) -> str:
    client.add_user("removed", is_admin=True)
    client.grant("removed", search=True, register=True)
    with client.app.app_context():
        token = tokens.new_token("removed", HOUR)
        sql_db.session.delete(sql_db.session.query(User).filter_by(username="removed").one())
        sql_db.session.commit()
    return token


def unsigned(client: AppClient) -> str:
    return f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(claims())}."


TOKENS: dict[str, Callable[[AppClient], str]] = {
    "unsigned": unsigned,
    "unsigned, in other letters": lambda c: f"{_part({'alg': 'nOnE'})}.{_part(claims())}.",
    "without signature": lambda c: signed(c, claims()).rpartition(".")[0] + ".",
    "signed with the public key": with_public_key,
    "of another server": of_another_server,
    "changed": changed,
    "expired": lambda c: signed(c, claims(exp=int(time.time()) - 1)),
    "not yet good": lambda c: signed(c, claims(nbf=int(time.time()) + 3600)),
    "to refresh": lambda c: signed(c, claims(type="refresh")),
    "without a subject": lambda c: signed(c, {k: v for k, v in claims().items() if k != "sub"}),
    "of a number": lambda c: f"{_part({'alg': 'RS256'})}.{_part(claims(sub=1))}.AAAA",
    "revoked": revoked,
    "of a user who was removed": of_one_removed,
    "with a key of its own": lambda c: signed(c, claims(), headers={"jwk": {"kty": "oct"}})[:-8],
    "no token": lambda c: "x",
    "nothing": lambda c: "",
    "three dots": lambda c: "...",
    "large": lambda c: "x" * 60_000,
}


def ask(client: AppClient, method: str, rule: str, uri: str, **options: Any) -> Any:
    body = None if method in ("GET", "DELETE") else body_of(rule, uri)
    return client.app.test_client().open(path_of(rule, uri), method=method, json=body, **options)


def require_refused(answer: Any, asked: str) -> None:
    assert answer.status_code in (401, 422), (asked, answer.status_code, answer.data)
    assert isinstance(answer.json, dict), asked
    assert SECRET not in f"{answer.headers}{answer.get_data(as_text=True)}", asked


@pytest.mark.parametrize("kind", TOKENS)
def test_token_that_is_none_opens_no_route(client: AppClient, uri: str, kind: str) -> None:
    token = TOKENS[kind](client)
    before = all_of(client, uri)

    for method, rule in ROUTES.keys() - OF_NO_TOKEN:
        answer = ask(client, method, rule, uri, headers={"Authorization": f"Bearer {token}"})
        require_refused(answer, f"{method} {rule}")
    assert all_of(client, uri) == before


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "cookie": lambda token: {"headers": {"Cookie": f"access_token_cookie={token}"}},
    "query": lambda token: {"query_string": {"jwt": token, "access_token": token}},
    "other scheme": lambda token: {"headers": {"Authorization": f"Token {token}"}},
    "no scheme": lambda token: {"headers": {"Authorization": token}},
    "other header": lambda token: {"headers": {"X-Authorization": f"Bearer {token}"}},
    "basic": lambda token: {"auth": ("boss", token)},
}


@pytest.mark.parametrize("place", PLACES)
def test_good_token_counts_in_its_header_alone(client: AppClient, uri: str, place: str) -> None:
    """A cookie would be sent by any page that a browser shows."""
    options = PLACES[place](client.token("boss"))

    for method, rule in ROUTES.keys() - OF_NO_TOKEN:
        require_refused(ask(client, method, rule, uri, **options), f"{method} {rule}")


def test_same_requests_with_a_good_token_are_not_refused(client: AppClient, uri: str) -> None:
    session = {"dserverfs_renewable_until": int(time.time()) + 3600}
    headers = {"Authorization": f"Bearer {signed(client, claims(**session))}"}
    known = [route for route, who in ROUTES.items() if who == KNOWN]

    assert len(known) > 2
    for method, rule in known:
        assert ask(client, method, rule, uri, headers=headers).status_code == 200


def test_rights_on_another_base_uri_are_none(client: AppClient, uri: str) -> None:
    """Whoever may do all in one base URI is a stranger in every other."""
    other = f"s3://other-{new_uuid()}"
    client.add_user("neighbour")
    client.add_base_uri(other)
    client.grant("neighbour", search=True, register=True, base_uri=other)
    before = all_of(client, uri)

    for (method, rule), who in ROUTES.items():
        if rule in LOGIN:
            continue
        headers = {"Authorization": f"Bearer {client.token('neighbour')}"}
        answer = ask(client, method, rule, uri, headers=headers)
        said = f"{answer.headers}{answer.get_data(as_text=True)}"
        assert SECRET not in said, rule
        assert "X-Amz-Signature" not in said, rule
        if who not in (ANYBODY, KNOWN, "filtered"):
            assert answer.status_code in (401, 403), (method, rule, answer.data)
    assert all_of(client, uri) == before


def test_operations_of_the_document_are_those_of_the_table(client: AppClient) -> None:
    """The OpenAPI document is dservercore's; what it has is in the table of rights."""
    api = client.app.extensions["flask-smorest"]["apis"][""]["ext_obj"]
    rules = {}
    for method, rule in ROUTES:
        plain = rule
        for kind in ("path:", "string:"):
            plain = plain.replace(f"<{kind}", "<")
        rules[method, plain.replace("<", "{").replace(">", "}")] = rule

    operations = {
        (method.upper(), path)
        for path, found in api.spec.to_dict()["paths"].items()
        for method in found
        if method in ("get", "put", "post", "delete", "patch", "head", "options", "trace")
    }
    assert len(operations) > 20
    assert operations <= rules.keys()


@pytest.mark.parametrize("method", ["PATCH", "TRACE", "CONNECT", "PROPFIND", "FOO"])
def test_methods_that_no_route_has_are_refused(client: AppClient, uri: str, method: str) -> None:
    headers = {"Authorization": f"Bearer {client.token('boss')}"}
    for rule in {rule for _, rule in ROUTES}:
        answer = client.app.test_client().open(path_of(rule, uri), method=method, headers=headers)
        assert answer.status_code == 405, rule


def test_no_answer_to_anybody_has_a_secret_of_the_server(client: AppClient, uri: str) -> None:
    config = client.app.config
    secrets = [
        config["SECRET_KEY"],
        config["JWT_PRIVATE_KEY"].splitlines()[1],
        config["SQLALCHEMY_DATABASE_URI"],
        client.storage.secret_key,
    ]
    for username in (None, "grumpy", "boss"):
        for method, rule in ROUTES:
            if method == "DELETE":
                continue
            headers = {"Authorization": f"Bearer {client.token(username)}"} if username else {}
            answer = ask(client, method, rule, uri, headers=headers)
            said = f"{answer.headers}{answer.get_data(as_text=True)}"
            for secret in secrets:
                assert len(secret) > 10
                assert secret not in said, rule
                assert json.dumps(secret)[1:-1] not in said, rule
