"""Every route of the server, asked by users with every right: nobody gets more than is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dserverfs.base.model import identifier_of
from dserverfs.server.pages import views as pages
from dserverfs.server.routes import table
from dserverfs.server.routes.health import Health
from dserverfs.server.routes.logins import Logins
from dserverfs.server.routes.metrics import Metrics
from dserverfs.server.routes.routing import Right
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded, new_uuid, upload_body

CONTENTS = {"a.txt": b"alpha"}
A = identifier_of("a.txt")

# Who may use a route. "anybody" needs no token, "known" one of a user the server
# knows; "filtered" is for known users, and shows what they may search only; "operator" needs
# the token in the data directory, which no user's is.
ANYBODY, KNOWN, FILTERED, SEARCH, REGISTER, BOTH, ADMIN, OPERATOR = (
    "anybody",
    "known",
    "filtered",
    "search",
    "register",
    "both",
    "admin",
    "operator",
)
ROUTES: dict[tuple[str, str], str] = {
    ("GET", "/config/health"): ANYBODY,
    ("GET", "/config/versions"): ANYBODY,
    ("GET", "/health"): ANYBODY,
    ("GET", "/health/ready"): ANYBODY,
    ("GET", "/metrics"): OPERATOR,
    ("POST", "/token"): ANYBODY,
    ("POST", "/auth/token"): ANYBODY,
    ("POST", "/auth/refresh"): KNOWN,
    ("GET", "/auth/info"): ANYBODY,
    ("GET", "/static/<path:filename>"): ANYBODY,
    ("GET", "/config/info"): KNOWN,
    ("GET", "/me"): KNOWN,
    ("GET", "/me/summary"): FILTERED,
    ("GET", "/uris"): FILTERED,
    ("POST", "/uris"): FILTERED,
    ("GET", "/uuids/<uuid>"): FILTERED,
    ("GET", "/uris/<path:uri>"): SEARCH,
    ("GET", "/manifests/<path:uri>"): SEARCH,
    ("GET", "/readmes/<path:uri>"): SEARCH,
    ("GET", "/annotations/<path:uri>"): SEARCH,
    ("GET", "/tags/<path:uri>"): SEARCH,
    ("GET", "/signed-urls/dataset/<path:uri>"): SEARCH,
    ("GET", "/signed-urls/item/<path:uri>/<identifier>"): SEARCH,
    ("POST", "/signed-urls/items/<path:uri>"): SEARCH,
    ("PUT", "/uris/<path:uri>"): REGISTER,
    ("DELETE", "/uris/<path:uri>"): REGISTER,
    ("PUT", "/readmes/<path:uri>"): REGISTER,
    ("PUT", "/tags/<path:uri>"): REGISTER,
    ("POST", "/tags/<path:uri>/<tag>"): REGISTER,
    ("DELETE", "/tags/<path:uri>/<tag>"): REGISTER,
    ("PUT", "/annotations/<path:uri>/<name>"): REGISTER,
    ("DELETE", "/annotations/<path:uri>/<name>"): REGISTER,
    ("PUT", "/overlays/<path:uri>/<name>"): REGISTER,
    ("DELETE", "/overlays/<path:uri>/<name>"): REGISTER,
    ("PUT", "/names/<path:uri>"): REGISTER,
    ("POST", "/signed-urls/upload/<path:base_uri>"): REGISTER,
    ("POST", "/signed-urls/upload-complete"): REGISTER,
    ("GET", "/signed-urls/uploads"): KNOWN,
    ("GET", "/signed-urls/upload/<path:uri>"): REGISTER,
    ("DELETE", "/signed-urls/upload/<path:uri>"): REGISTER,
    ("POST", "/signed-urls/upload-parts"): REGISTER,
    ("POST", "/signed-urls/upload-parts/sign"): REGISTER,
    ("POST", "/signed-urls/upload-parts/complete"): REGISTER,
    ("POST", "/signed-urls/block-hashes/<path:uri>"): REGISTER,
    ("POST", "/signed-urls/block-hashes-complete"): REGISTER,
    ("POST", "/signed-urls/publish/<path:uri>"): BOTH,
    ("DELETE", "/signed-urls/publish/<path:uri>"): REGISTER,
    ("GET", "/published/<token>"): ANYBODY,
    ("GET", "/published/<token>/http_manifest.json"): ANYBODY,
    ("GET", "/users"): ADMIN,
    ("GET", "/users/<username>"): ADMIN,
    ("PUT", "/users/<username>"): ADMIN,
    ("DELETE", "/users/<username>"): ADMIN,
    ("GET", "/users/<username>/summary"): ADMIN,
    ("GET", "/base-uris"): ADMIN,
    ("GET", "/base-uris/<path:base_uri>"): ADMIN,
    ("PUT", "/base-uris/<path:base_uri>"): ADMIN,
    ("DELETE", "/base-uris/<path:base_uri>"): ADMIN,
}
# Pages know their user by a cookie; their tests are in test_pages.
PAGES: dict[tuple[str, str], str] = {
    ("GET", "/"): KNOWN,
    ("GET", "/browse/dataset/<path:uri>"): SEARCH,
    ("GET", "/browse/item/<path:uri>"): SEARCH,
    ("GET", "/browse/login"): ANYBODY,
    ("POST", "/browse/login"): ANYBODY,
    ("POST", "/browse/logout"): ANYBODY,
    ("GET", "/browse/style.css"): ANYBODY,
}
LOGIN = ("/token", "/auth/token")  # which refuse a wrong password as if it were a token
USERS = ("nobody", "none", "searcher", "registrar", "both", "boss")
SECRET = "undisclosed"  # in all that a dataset says


class Subject(NamedTuple):
    """What the routes are asked about."""

    client: AppClient
    base_uri: str
    uri: str


@pytest.fixture(scope="module")
def client(
    server: ServerHandle, tmp_path_factory: pytest.TempPathFactory, database: str | None
) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("permissions"), database=database)
    for username in USERS[1:]:
        client.add_user(username, is_admin=username == "boss")
    client.grant("searcher", search=True, register=False)
    client.grant("registrar", search=False, register=True)
    client.grant("both", search=True, register=True)
    yield client
    client.close()


@pytest.fixture(scope="module")
def uri(client: AppClient) -> str:
    return client.upload(CONTENTS, tags=["t"], annotations={"n": 1})


def body_of(rule: str, uri: str) -> Any:
    """Return a body that would do no harm but the one asked for."""
    base_uri, _, uuid = uri.rpartition("/")
    bodies: dict[str, Any] = {
        "/readmes/<path:uri>": {"readme": "x"},
        "/tags/<path:uri>": {"tags": ["x"]},
        "/annotations/<path:uri>/<name>": {"value": 1},
        "/overlays/<path:uri>/<name>": {"value": {A: 1}},
        "/names/<path:uri>": {"name": "x"},
        "/signed-urls/items/<path:uri>": {"identifiers": [A]},
        "/signed-urls/upload/<path:base_uri>": upload_body(CONTENTS),
        "/signed-urls/upload-parts": {"uri": uri, "identifier": A},
        "/signed-urls/upload-parts/sign": {"uri": uri, "identifier": A, "parts": {"1": "0" * 32}},
        "/signed-urls/upload-parts/complete": {"uri": uri, "identifier": A, "etags": ["0"]},
        "/signed-urls/block-hashes-complete": {"uri": uri},
        "/signed-urls/upload-complete": {"uri": f"{base_uri}/{new_uuid()}"},
        "/uris/<path:uri>": {
            **{"uuid": uuid, "base_uri": base_uri, "uri": uri, "name": "x", "type": "dataset"},
            **{"readme": "", "creator_username": "x", "frozen_at": "1", "tags": []},
            "annotations": {},
            "manifest": {
                "items": {A: {"hash": "0", "relpath": "a.txt", "size_in_bytes": 5}},
                "hash_function": "md5sum_hexdigest",
                "dtoolcore_version": "3",
            },
        },
        "/users/<username>": {"username": "other"},
        "/base-uris/<path:base_uri>": {
            "users_with_search_permissions": [],
            "users_with_register_permissions": [],
        },
        **{rule: {"username": "x", "password": "x"} for rule in LOGIN},
    }
    return bodies.get(rule)


def path_of(rule: str, uri: str) -> str:
    base_uri, _, uuid = uri.rpartition("/")
    named = {
        "<path:uri>": encoded(uri),
        "<path:base_uri>": encoded(base_uri),
        "<uuid>": uuid,
        "<identifier>": A,
        "<tag>": "t",
        "<name>": "n",
        "<username>": "other",
        "<path:filename>": "x",
        "<token>": "x",
    }
    for placeholder, value in named.items():
        rule = rule.replace(placeholder, value)
    assert "<" not in rule
    return rule


def test_every_route_is_in_the_table(client: AppClient) -> None:
    routes = {
        (method, rule.rule)
        for rule in client.app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }

    assert routes == {*ROUTES, *PAGES}


def test_our_routes_need_the_rights_of_the_table(client: AppClient) -> None:
    needed = {
        Right.NONE: ANYBODY,
        Right.USER: KNOWN,
        Right.SEARCH: SEARCH,
        Right.USER | Right.SEARCH: SEARCH,
        Right.REGISTER: REGISTER,
        Right.SEARCH | Right.REGISTER: BOTH,
    }
    logins, health = Logins(), Health(client.stores, "")
    parts = table.Parts(client.stores, client.settings, logins, health, Metrics(""))
    ours = (
        *table.REPLACED.values(),
        *table.routes(parts),
        *pages.routes(client.stores, client.settings, logins),
    )

    assert len(ours) > 20
    for route in ours:
        said = {**ROUTES, **PAGES}[route.method, route.rule]
        # The operator's token is no user's, and the handler asks for it; and filters.
        filters = (FILTERED,) if route.right is Right.USER else ()
        assert said in (needed[route.right], OPERATOR, *filters), route.address
        views = {
            client.app.view_functions[rule.endpoint]
            for rule in client.app.url_map.iter_rules()
            if rule.rule == route.rule and route.method in (rule.methods or ())
        }
        assert [view.__name__ for view in views] == [route.handler.__name__]


def asked(client: AppClient, method: str, rule: str, uri: str, username: str | None) -> Any:
    body = None if method in ("GET", "DELETE") else body_of(rule, uri)
    return client.request(method, path_of(rule, uri), body, username=username)


@pytest.mark.parametrize(("method", "rule"), list(ROUTES), ids=map(" ".join, ROUTES))
def test_route_is_for_whom_the_table_says(
    client: AppClient, uri: str, method: str, rule: str
) -> None:
    may = {
        ANYBODY: USERS,
        KNOWN: USERS[1:],
        FILTERED: USERS[1:],
        SEARCH: ("searcher", "both"),
        REGISTER: ("registrar", "both"),
        BOTH: ("both",),
        ADMIN: ("boss",),
        OPERATOR: (),
    }[ROUTES[method, rule]]
    if method == "DELETE" and rule == "/uris/<path:uri>":
        uri = client.upload({"b.txt": b""})
    if ROUTES[method, rule] == ADMIN and "<" in rule:
        client.add_user("other")
        uri = f"s3://other-{new_uuid()}/{new_uuid()}"
        if method == "DELETE":
            client.add_base_uri(uri.rpartition("/")[0])
    anonymous = asked(client, method, rule, uri, None).status_code
    refused = [u for u in USERS if u not in may]

    statuses = {u: asked(client, method, rule, uri, u).status_code for u in (*refused, *may)}

    if ROUTES[method, rule] != ANYBODY:
        assert anonymous == 401
    assert {statuses[u] for u in refused} <= {401, 403}, statuses
    if rule not in LOGIN:
        assert {statuses[u] for u in may}.isdisjoint({401, 403}), statuses
    assert 500 not in statuses.values()


# flask-smorest's, when dservercore answers "nothing" without asking the search.
@pytest.mark.filterwarnings("ignore:item_count not set")
def test_listings_show_what_may_be_searched(client: AppClient, uri: str) -> None:
    uuid = uri.rpartition("/")[2]

    none = ("none", "registrar", "boss")
    for username, shown in (*((name, 0) for name in none), ("searcher", 1), ("both", 1)):
        for method, path, body in (
            ("GET", f"/uris?uuids={uuid}", None),
            ("POST", "/uris", {"uuids": [uuid]}),
            ("POST", "/uris", {"uuids": [uuid], "base_uris": [client.base_uri]}),
            ("GET", f"/uuids/{uuid}", None),
        ):
            found = client.request(method, path, body, username=username)
            assert (found.status_code, len(found.json)) == (200, shown), (username, path)
        summary = client.request("GET", "/me/summary", username=username).json
        assert (summary["number_of_datasets"] > 0) == bool(shown)


def test_rights_on_one_base_uri_are_none_on_another(client: AppClient, uri: str) -> None:
    """PUT /uris asks for rights on the base URI of the body, the dataset is kept by its URI."""
    other = f"s3://other-{new_uuid()}"
    client.add_base_uri(other)
    client.grant("searcher", search=True, register=True, base_uri=other)
    body = {**body_of("/uris/<path:uri>", uri), "base_uri": other, "readme": "forged"}

    answer = client.request("PUT", f"/uris/{encoded(uri)}", body, username="searcher")

    assert answer.status_code == 403
    readme = client.request("GET", f"/readmes/{encoded(uri)}", username="searcher")
    assert readme.json["readme"] != "forged"


def secret_dataset(client: AppClient) -> str:
    overlay = {A: SECRET, identifier_of(SECRET): SECRET}
    return client.upload(
        {**CONTENTS, SECRET: b"x"},
        readme=SECRET.encode(),
        name=SECRET,
        creator_username=SECRET,
        tags=["t", SECRET],
        annotations={"n": 1, SECRET: SECRET},
        overlays={"n": overlay, SECRET: overlay},
    )


@pytest.fixture(scope="module")
def secret_uri(client: AppClient) -> str:
    return secret_dataset(client)


# flask-smorest's, when dservercore answers "nothing" without asking the search.
@pytest.mark.filterwarnings("ignore:item_count not set")
@pytest.mark.parametrize(("method", "rule"), list(ROUTES), ids=map(" ".join, ROUTES))
def test_answer_tells_nothing_that_its_user_may_not_search(
    client: AppClient, secret_uri: str, method: str, rule: str
) -> None:
    uuid = secret_uri.rpartition("/")[2]
    uri = secret_uri
    if ROUTES[method, rule] == REGISTER:  # which changes it
        uri = secret_dataset(client)
    elif ROUTES[method, rule] == ADMIN:  # who may take away the rights on it
        uri = f"s3://other-{new_uuid()}/{new_uuid()}"

    for username in (None, "nobody", "none", "registrar", "boss"):
        answer = asked(client, method, rule, uri, username)
        said = f"{answer.headers}{answer.get_data(as_text=True)}"

        assert SECRET not in said, username
        assert f"{uuid}/data/" not in said, username  # a signed URL of an item


def all_of(client: AppClient, uri: str) -> list[Any]:
    """Return all that can be changed of a dataset, of users and of base URIs."""
    path = encoded(uri)
    answers = [
        *(
            client.get(f"/{route}/{path}").json
            for route in ("uris", "manifests", "readmes", "tags", "annotations")
        ),
        list(client.get(f"/signed-urls/dataset/{path}").json["overlay_urls"]),
        client.request("GET", "/users?page_size=100", username="boss").json,
        client.request("GET", "/base-uris?page_size=100", username="boss").json,
        client.request("GET", f"/base-uris/{encoded(client.base_uri)}", username="boss").json,
    ]
    assert all(answers)
    return answers


@pytest.mark.filterwarnings("ignore:item_count not set")
def test_who_may_not_change_anything_changes_nothing(client: AppClient, secret_uri: str) -> None:
    before = all_of(client, secret_uri)

    for (method, rule), who in ROUTES.items():
        # The others have no more rights than these.
        for username in (None, "searcher", *(["boss"] if who != ADMIN else [])):
            if rule not in LOGIN:
                asked(client, method, rule, secret_uri, username)

    assert all_of(client, secret_uri) == before


def test_who_may_register_only_is_answered_with_what_was_sent(client: AppClient) -> None:
    path = encoded(secret_dataset(client))

    def ask(method: str, route: str, body: Any = None) -> Any:
        return client.request(method, route, body, username="registrar").json

    assert ask("PUT", f"/annotations/{path}/own", {"value": 2}) == {"annotations": {"own": 2}}
    assert ask("DELETE", f"/annotations/{path}/own") == {"annotations": {}}
    assert ask("POST", f"/tags/{path}/own") == {"tags": ["own"]}
    assert ask("DELETE", f"/tags/{path}/own") == {"tags": []}
    assert client.get(f"/tags/{path}").json == {"tags": ["t", SECRET]}


@pytest.mark.parametrize(
    "forged",
    [
        {"hash": "0" * 32},
        {"size_in_bytes": 6},
        {"relpath": "b.txt"},
        None,
    ],
)
def test_registering_anew_does_not_change_what_is_frozen(client: AppClient, forged: Any) -> None:
    uri = client.upload(CONTENTS)
    manifest = client.get(f"/manifests/{encoded(uri)}").json
    right = {**body_of("/uris/<path:uri>", uri), "manifest": manifest, "readme": "new: yes"}
    item = manifest["items"][A]
    items = {} if forged is None else {A: {**item, **forged}}
    wrong = {**right, "manifest": {**manifest, "items": items}}
    path = f"/uris/{encoded(uri)}"

    assert client.request("PUT", path, wrong).status_code == 409
    client.request("DELETE", path)
    assert client.request("PUT", path, wrong).status_code == 409
    assert client.request("PUT", path, right).status_code == 201

    assert client.get(f"/manifests/{encoded(uri)}").json == manifest
    assert client.get(f"/readmes/{encoded(uri)}").json == {"readme": "new: yes"}
