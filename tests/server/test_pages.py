"""The pages of the server, as a browser asks for them."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urljoin, urlsplit

import pytest
import requests
from dservercore import sql_db
from dservercore.sql_models import User
from sqlalchemy import update

from dserverfs.base import item_stream
from dserverfs.base.model import identifier_of
from dserverfs.server.database import item_pages, passwords, sessions, sql, tokens
from dserverfs.server.database.tables import description, session
from dserverfs.server.pages import views
from tests.server.test_accounts import password_of
from tests.server.test_input import PARTS, QUERIES
from tests.server.test_permissions import PAGES, ROUTES, SECRET, path_of, secret_dataset
from tests.support.html_pages import HtmlPage
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded, new_uuid

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def client(server: ServerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path_factory.mktemp("pages"))
    for username in ("searcher", "registrar", "none"):
        client.add_user(username)
    client.grant("searcher", search=True, register=False)
    client.grant("registrar", search=False, register=True)
    yield client
    client.close()


def page_of(uri: str) -> str:
    return f"/browse/dataset/{uri.replace('://', '/')}"


def item_of(uri: str, relpath: str) -> str:
    return f"/browse/item/{uri.replace('://', '/')}?path={quote(relpath)}"


# Login


def test_login_gives_a_cookie_that_scripts_cannot_read_and_logout_ends_it(
    server: ServerHandle,
) -> None:
    right = {"username": server.username, "password": password_of(server), "back_to": "?q=x"}
    with requests.Session() as browser:
        browser.headers.update(HTML)
        login = f"{server.url}/browse/login"
        anonymous = browser.get(f"{server.url}/")
        wrong = browser.post(login, {**right, "password": "wrong"})
        before = dict(browser.cookies)

        logged_in = browser.post(login, right, allow_redirects=False)

        assert anonymous.status_code == wrong.status_code == 401
        assert "wrong username or password" in HtmlPage(wrong.text).text
        assert HtmlPage(wrong.text).value_of("back_to") == "?q=x"
        assert before == {}
        assert (logged_in.status_code, logged_in.headers["Location"]) == (303, "../?q=x")
        cookie = logged_in.headers["Set-Cookie"]
        assert "; HttpOnly; Path=/; SameSite=Lax" in cookie
        assert "Secure" not in cookie
        assert server.username in browser.get(f"{server.url}/").text
        name, value = browser.cookies.items()[0]
        assert browser.post(f"{server.url}/browse/logout", allow_redirects=False).status_code == 303
        assert dict(browser.cookies) == {}
        kept = requests.get(f"{server.url}/", cookies={name: value}, headers=HTML, timeout=60)
        assert kept.status_code == 401


@pytest.fixture(scope="module")
def login(client: AppClient) -> dict[str, str]:
    """A form that is filled in rightly."""
    client.add_user("with-password")
    with client.app.app_context():
        passwords.set_password("with-password", "right")
        sql_db.session.commit()
    return {"username": "with-password", "password": "right"}


def test_cookie_is_for_https_alone_where_the_browser_has_that(
    client: AppClient, login: dict[str, str]
) -> None:
    headers = {"Origin": "https://localhost"}

    answer = client.browse("/browse/login", login, username=None, headers=headers)

    assert "; Secure;" in answer.headers["Set-Cookie"]


OWN_FORMS: list[dict[str, str]] = [
    {},  # no browser
    {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost"},  # a proxy has https
]
OTHER_FORMS: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": ""},
    {"Origin": "http://localhost:8000"},
    {"Origin": "http://elsewhere.example"},
    {"Origin": "http://localhost.elsewhere.example"},
    {"Origin": "null"},
    {"Origin": ""},
]


@pytest.mark.parametrize(
    ("headers", "is_own"),
    [*((each, True) for each in OWN_FORMS), *((each, False) for each in OTHER_FORMS)],
)
def test_forms_of_other_servers_are_refused(
    client: AppClient, headers: dict[str, str], is_own: bool
) -> None:
    username = f"form-{new_uuid()}"
    client.add_user(username)

    logout = client.browse("/browse/logout", {}, username=username, headers=headers)
    login = client.browse("/browse/login", {"username": "\0"}, username=None, headers=headers)

    assert logout.status_code == (303 if is_own else 403)
    assert login.status_code == (401 if is_own else 403)
    assert client.browse("/", username=username).status_code == (401 if is_own else 200)


@pytest.mark.parametrize("back_to", ["", "?tag=a&page=2", "browse/dataset/s3/b/u?part=%C3%A9"])
def test_login_leads_to_the_page_that_was_asked_for(
    client: AppClient, login: dict[str, str], back_to: str
) -> None:
    answer = client.browse("/browse/login", {**login, "back_to": back_to}, username=None)

    assert answer.headers["Location"] == f"../{back_to}"


HOSTILE_WAYS = [
    *("//elsewhere.example", "https://elsewhere.example", "/\\elsewhere.example", "browse", ".."),
    *("javascript:alert(1)", "browse/\r\nSet-Cookie: a=b", "?\n", "browse/ä", "browse/a b"),
]


def test_login_leads_to_no_other_server(
    client: AppClient, login: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "is_right", lambda username, password: True)

    for back_to in HOSTILE_WAYS:
        answer = client.browse("/browse/login", {**login, "back_to": back_to}, username=None)
        assert answer.headers["Location"] == "../", back_to


def test_page_that_needs_a_login_leads_back_to_itself(client: AppClient) -> None:
    address = f"/browse/dataset/s3/a/{new_uuid()}?part=a%20b"

    shown = HtmlPage(client.browse(address, username=None).text)

    assert shown.value_of("back_to") == address.removeprefix("/")


def change_password(username: str) -> None:
    passwords.set_password(username, "other")


def remove(username: str) -> None:
    sql_db.session.delete(sql_db.session.query(User).filter_by(username=username).one())


def expire(username: str) -> None:
    sql.execute(update(session).where(session.c.username == username).values(expires_at=0))


@pytest.mark.parametrize("end", [change_password, tokens.revoke, remove, expire])
def test_session_ends_with_the_tokens_of_its_user(client: AppClient, end: Any) -> None:
    username = f"ends-{end.__name__}".replace("_", "-")
    client.add_user(username)
    with client.app.app_context():
        passwords.set_password(username, "one")
        sql_db.session.commit()
    before = client.browse("/", username=username).status_code

    with client.app.app_context():
        end(username)
        sql_db.session.commit()

    assert (before, client.browse("/", username=username).status_code) == (200, 401)


def test_sessions_of_a_user_are_bounded(client: AppClient) -> None:
    client.add_user("often")
    with client.app.app_context():
        made = [sessions.begin("often", views.SESSION_LIFE) for _ in range(102)]

        known = [bool(sessions.username_of(secret)) for secret in made]

        sql_db.session.rollback()
    assert known == [False] * 2 + [True] * 100


def test_session_opens_no_other_route_and_a_token_no_page(client: AppClient) -> None:
    session = client.session("grumpy").partition("=")[2]

    for headers in ({"Cookie": client.session("grumpy")}, {"Authorization": f"Bearer {session}"}):
        assert client.request("GET", "/me", username=None, headers=headers).status_code in (
            401,
            422,
        )
    for name in (client.session("grumpy").partition("=")[0], "access_token_cookie"):
        headers = {**HTML, "Cookie": f"{name}={client.token('grumpy')}"}
        assert client.request("GET", "/", headers=headers).status_code == 401


# Who sees what


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("", 404),
        ("*/*", 404),
        ("application/json", 404),
        ("application/json, text/plain, */*", 404),
        ("text/html;q=0", 404),
        (HTML["Accept"], 401),
    ],
)
def test_programs_find_at_the_root_what_they_found(
    client: AppClient, accept: str, status: int
) -> None:
    answer = client.request("GET", "/", username=None, headers={"Accept": accept})

    assert answer.status_code == status
    if status == 404:
        assert answer.json == {"code": 404, "status": "Not Found"}


@pytest.fixture(scope="module")
def secret_uri(client: AppClient) -> str:
    return secret_dataset(client)


def test_pages_are_for_whom_the_table_says_and_tell_others_nothing(
    client: AppClient, secret_uri: str
) -> None:
    may = {"anybody": (None, "none", "registrar", "searcher"), "known": ("none", "registrar")}
    for (method, rule), who in PAGES.items():
        path = path_of(rule, secret_uri)
        if rule.startswith("/browse/item"):
            path += f"?path={SECRET}"
        for username in (None, "none", "registrar", "searcher"):
            form: dict[str, str] | None = {} if method == "POST" else None
            answer = client.browse(path, form, username=username)
            said = f"{answer.headers}{answer.get_data(as_text=True)}"
            asked = f"{rule} by {username}"
            if username == "searcher" or username in may.get(who, ()):
                assert answer.status_code not in (403, 404), asked
            if rule != "/browse/login":
                is_open = username == "searcher" or username in may.get(who, ())
                assert is_open == (answer.status_code in (200, 303)), asked
            told = SECRET in said.replace(quote(path), "").replace(path.lstrip("/"), "")
            assert told == (username == "searcher" and who != "anybody"), asked
    # The logout is one of the pages.
    client._sessions.clear()


def test_start_page_shows_what_the_api_lists(client: AppClient) -> None:
    for tag in ("alike", "other"):
        client.upload({"a": b"x"}, name=f"{tag}-dataset", tags=[tag], creator_username=f"by-{tag}")

    for query, api in (
        ("", {}),
        ("q=alike", {"free_text": "alike"}),
        ("tag=alike", {"tags": ["alike"]}),
        ("creator=by-other", {"creator_usernames": ["by-other"]}),
        ("tag=none", {"tags": ["none"]}),
    ):
        shown = HtmlPage(client.browse(f"/?{query}&sort=name").text)
        listed = client.post("/uris?page_size=25&sort=name", api).json
        found = [link for link in shown.links() if link.startswith("./browse/dataset/")]
        assert sorted(found) == sorted(f".{page_of(each['uri'])}" for each in listed), query


def test_datasets_are_shown_page_by_page(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "DATASETS_PER_PAGE", 2)
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        client.upload({}, name=name, tags=["paged"])

    shown: list[str] = []
    way = ["./?tag=paged&sort=name"]
    while way:
        page = HtmlPage(client.browse(way[0][1:]).text)
        shown += [name for name in names if name in page.text]
        way = page.links("next")

    assert shown == names
    for on_a_page, last in ((2, 3), (25, 1)):
        monkeypatch.setattr(views, "DATASETS_PER_PAGE", on_a_page)
        beyond = client.browse("/?tag=paged&page=7")
        assert "There is no page 7" in beyond.text
        assert f"page={last}" in HtmlPage(beyond.text).links("prev")[0]


# A dataset

README = b"""description: Weights & <b>measures</b>
creators:
  - name: A
    since: 2020-01-02
empty:
"""


def test_dataset_is_shown_with_all_that_is_known_of_it(client: AppClient) -> None:
    uri = client.upload(
        {"a.txt": b"alpha", "d/b c.txt": b"x" * 2048},
        name="shown",
        readme=README,
        tags=["red"],
        annotations={"kind": {"of": [1, "x"]}, "text": "plain"},
    )

    text = HtmlPage(client.browse(page_of(uri)).text).text

    for part in (
        "shown",
        "Items 2, 2.0 KiB together",
        "Creator grumpy",
        "Frozen 2023-11-14 22:13 UTC",
        "description Weights & <b>measures</b>",
        "name A since 2020-01-02",
        'kind {"of": [1, "x"]}',
        "text plain",
        "red",
        "dserverfs login https://data.example.org",
        f"dserverfs mount dserver://data.example.org/{uri.replace('://', '/')} ~/mnt",
        f"dtool cp dserver://data.example.org/{uri.replace('://', '/')} .",
        "a.txt 5 Bytes",
        "d/b c.txt 2.0 KiB",
    ):
        assert part in text


def test_item_is_saved_by_a_url_that_is_signed_when_it_is_clicked(client: AppClient) -> None:
    relpath = 'd/ä "b";.html'
    uri = client.upload({relpath: b"<script>alert(1)</script>"})
    page = client.browse(page_of(uri))
    (link,) = [each for each in HtmlPage(page.text).links() if "/item/" in each]

    answer = client.browse(
        urlsplit(urljoin(f"http://x{page_of(uri)}", link))._replace(scheme="", netloc="").geturl()
    )

    assert "X-Amz" not in page.text
    assert answer.status_code == 303
    got = requests.get(answer.headers["Location"], timeout=60)
    assert got.content == b"<script>alert(1)</script>"
    name = quote('ä "b";.html', safe="")
    assert got.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{name}"


@pytest.mark.parametrize("relpath", ["other", "", "a.txt/", "../x", "ä"])
def test_what_is_no_item_is_not_signed(client: AppClient, secret_uri: str, relpath: str) -> None:
    answer = client.browse(item_of(secret_uri, relpath))

    assert answer.status_code == 404
    assert "has no item" in HtmlPage(answer.text).text


def test_items_are_shown_page_by_page_in_order(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "ITEMS_PER_PAGE", 3)
    relpaths = ["b", "a/z", "a b", "A/x", "é", "a&after=b", "%41", "c"]
    uri = client.upload({relpath: b"" for relpath in relpaths})

    def walked(first: str) -> list[str]:
        shown: list[str] = []
        way = [first]
        while way:
            address = urljoin(f"http://x{page_of(uri)}", way[0]).removeprefix("http://x")
            page = HtmlPage(client.browse(address.partition("#")[0]).text)
            found = [link for link in page.links() if "/item/" in link]
            assert found or not shown, "a link led to an empty page"
            shown += found
            way = page.links("next")
        return [parse_qs(link.partition("?")[2])["path"][0] for link in shown]

    assert walked(page_of(uri)) == sorted(relpaths)
    assert walked(f"{page_of(uri)}?part=A") == ["A/x", "a b", "a&after=b", "a/z"]
    assert walked(f"{page_of(uri)}?part=b") == ["a b", "a&after=b", "b"]
    assert walked(f"{page_of(uri)}?part=nothing") == []


def test_page_of_items_takes_memory_for_its_own_alone(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_stream, "PART_BYTES", 64 * 1024)
    items = {
        identifier_of(relpath): {"relpath": relpath, "size_in_bytes": 1, "hash": "0" * 32}
        for relpath in (f"directory/{number:06}.txt" for number in range(8_000))
    }
    manifest = gzip.compress(json.dumps({"items": items}).encode(), 1)
    uri = f"{client.base_uri}/{new_uuid()}"
    kept = {"uri": uri, "readme": "", "annotations": "{}", "tags": "[]", "manifest": manifest}
    most: list[int] = []
    with client.app.app_context():
        sql.insert_row(description, **kept)
        for ask in (
            lambda: item_pages.page_of(uri, after="directory/000100.txt", part="", count=100),
            lambda: json.loads(gzip.decompress(manifest)),
        ):
            tracemalloc.start()
            found = ask()
            most.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            if isinstance(found, item_pages.ItemPage):
                assert found.listed[0].relpath == "directory/000101.txt"
        sql_db.session.rollback()

    assert 4 * most[0] < most[1]


# Every answer


def test_every_page_forbids_scripts_frames_and_keeping(client: AppClient, secret_uri: str) -> None:
    for address, username, status in (
        ("/", "searcher", 200),
        ("/", None, 401),
        (page_of(secret_uri), "searcher", 200),
        (page_of(secret_uri), "none", 403),
        (page_of(f"{client.base_uri}/{new_uuid()}"), "searcher", 404),
        (item_of(secret_uri, SECRET), "searcher", 303),
        ("/?page=x", "searcher", 422),
        ("/?q=%00", "searcher", 400),
        ("/browse/style.css", None, 200),
    ):
        answer = client.browse(address, username=username)
        policy = answer.headers["Content-Security-Policy"]
        assert answer.status_code == status, address
        assert policy.startswith("default-src 'none'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        if not address.endswith("css"):
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.mimetype == "text/html"


def test_pages_below_a_prefix_lead_below_it(client: AppClient, secret_uri: str) -> None:
    for address in (
        "/",
        page_of(secret_uri),
        "/browse/item/s3/a/b",
        f"/browse/dataset/{encoded(secret_uri)}",
    ):
        page = HtmlPage(client.browse(address, username="searcher").text)
        (style,) = (each for each in page.elements if each.name == "link")
        where = urlsplit(urljoin(f"https://here/prefix{address}", style.attributes["href"]))
        assert where.path == "/prefix/browse/style.css", address


@pytest.mark.parametrize("query", QUERIES)
def test_queries_of_any_form_are_no_fault_of_a_page(
    client: AppClient, secret_uri: str, query: str
) -> None:
    for name in ("q", "part", "path"):
        for address in ("/", page_of(secret_uri), item_of(secret_uri, SECRET).partition("?")[0]):
            wanted = query.replace("free_text", name)
            assert client.browse(f"{address}?{wanted}").status_code < 500, (address, wanted)


@pytest.mark.parametrize("part", PARTS)
def test_paths_of_any_form_are_no_fault_of_a_page(client: AppClient, part: str) -> None:
    for prefix in ("/browse/dataset/", "/browse/item/", "/browse/"):
        for odd in (part, f"s3/{part}", f"s3://{part}", f"{client.base_uri}/{part}"):
            assert client.browse(prefix + odd).status_code < 500, prefix + odd


def test_a_page_has_no_address_of_another_route() -> None:
    assert not set(PAGES) & set(ROUTES)
