"""A dserver over real HTTP that errs as dservers and the proxies before them do.

It serves the routes for reading, and a store for its signed URLs, from memory;
`test_api.py` holds it and the real server to the same contract. What it
does wrong is set by the attributes of `Quirks` and by queued faults.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

from dserverfs.base.conditions import has_words
from dserverfs.base.model import Identifier, identifier_of
from tests.support import quirky_changes
from tests.support.local_web import serving

TOKEN = "good-token"
BASE_URI = quirky_changes.BASE_URI
Fault = Callable[["Handler"], None]

CONTENTS = {"hello.txt": b"hello\n", "more/data.bin": bytes(range(256)), "more/other": b"x"}
HELLO = identifier_of("hello.txt")
OTHERS: dict[str, Any] = {
    "tags": ["b", "a"],
    "annotations": {"n": 5},
    "overlays": {"o": {identifier_of(relpath): 1 for relpath in CONTENTS}},
}


def alone(count: int) -> list[Identifier]:
    """Name no neighbours."""
    return []


def only_hello(count: int) -> list[Identifier]:
    return [HELLO]


@dataclass
class Quirks:
    """How this server differs from the real one; nothing by default."""

    page_size: int | None = None  # whatever is asked for
    sends_pagination: bool = True
    total: object = ...  # what it says instead of the number of datasets
    beyond_the_end: str = "404"  # or "empty", or "last page"
    refuses_sort: bool = False
    encoded_slashes: bool = True  # False: a proxy decodes them, and merges slashes
    knows_items_false: bool = True
    max_batch: int = 1000
    odd_answer: dict[str, Any] = field(default_factory=dict)  # over that of signed URLs
    amz_dates: bool = True
    changes: str = "none"  # as dservercore 0.22; or "master", or "own"
    loses_changes: bool = False  # those of "master" do not reach the store
    # Whether the index of "master" learns of changes: with the released plugins it does not.
    index_follows: bool = False
    drops: str = ""  # a name that "master" leaves out of the sets it writes
    refuses_no_value: bool = False  # an annotation whose value is left out, which means null


def jwt(**claims: Any) -> str:
    """Return an unsigned token with these claims."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.x"


class QuirkyServer:
    """Datasets, users, faults to come, and what was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.quirks = Quirks()
        self.faults: list[Fault | None] = []
        self.requests: list[str] = []  # "METHOD /path" without the query
        self.queries: list[dict[str, str]] = []
        self.versions: dict[str, Any] = {
            "dservercore": "0.22.0",
            "dserverfs.server.signed_urls": "1",
        }
        self.users = {TOKEN: "grumpy"}
        self.permissions = [BASE_URI]
        self.register: list[str] = []
        self.entries: list[dict[str, Any]] = []
        self.described: dict[str, dict[str, Any]] = {}  # by URI: manifest, readme, tags, ...
        self.objects: dict[str, bytes] = {}  # by key
        self.store_faults: list[Fault | None] = []
        self.before_change: Callable[[], None] = lambda: None  # once it has arrived
        self.broken: dict[str, Fault] = {}  # by pattern of "METHOD /path", until taken away
        self.store_headers: list[dict[str, str]] = []  # of each request to the store

    def add(
        self, uuid: str, contents: Mapping[str, bytes], readme: bytes = b"", **others: Any
    ) -> str:
        """Register a dataset as `tests.support.servers.upload` does; return its URI."""
        uri = f"{BASE_URI}/{uuid}"
        items = {
            hashlib.sha1(relpath.encode()).hexdigest(): {
                "relpath": relpath,
                "size_in_bytes": len(content),
                "hash": hashlib.md5(content).hexdigest(),
                "utc_timestamp": 1600000000.25,
            }
            for relpath, content in contents.items()
        }
        entry: dict[str, Any] = {
            "base_uri": BASE_URI,
            "created_at": 1700000000.5,
            "creator_username": "grumpy",
            "frozen_at": 1700000000.5,
            "name": "a-dataset",
            "number_of_items": len(items),
            "size_in_bytes": sum(map(len, contents.values())),
            "uri": uri,
            "uuid": uuid,
        }
        given = ("frozen_at", "name", "creator_username")
        entry.update({key: others[key] for key in given if key in others})
        self.entries.append(entry)
        manifest = {
            "dtoolcore_version": "3.19.0",
            "hash_function": "md5sum_hexdigest",
            "items": items,
        }
        admin = {**entry, "type": "dataset", "dtoolcore_version": "3.19.0"}
        annotations = others.get("annotations", {})
        self.described[uri] = {
            "manifest": manifest,
            "readme": readme.decode(),
            "tags": others.get("tags", []),
            "annotations": annotations,
            "overlays": others.get("overlays", {}),
            # What the store has, which on some servers the index does not follow.
            "stored": {
                "tags": list(others.get("tags", [])),
                "annotations": dict(annotations),
            },
        }
        for relpath, content in contents.items():
            self.objects[f"{uuid}/data/{hashlib.sha1(relpath.encode()).hexdigest()}"] = content
        self.objects[f"{uuid}/README.yml"] = readme
        self.objects[f"{uuid}/dtool"] = json.dumps(admin).encode()
        for kind in ("annotations", "overlays"):
            for name, value in others.get(kind, {}).items():
                self.objects[f"{uuid}/{kind}/{name}.json"] = json.dumps(value).encode()
        return uri

    def breakage(self, request: str) -> Fault | None:
        """Return what is broken about a request."""
        found = (fault for pattern, fault in self.broken.items() if re.search(pattern, request))
        return next(found, None)

    def asked(self, pattern: str) -> int:
        """Return how many requests match."""
        return sum(re.search(pattern, request) is not None for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    """Answers as dservercore and the signed-URL plugin do."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server_state: QuirkyServer

    def do_GET(self) -> None:
        self._dispatch()

    def do_POST(self) -> None:
        self._dispatch()

    def do_PUT(self) -> None:
        self._dispatch()

    def do_DELETE(self) -> None:
        self._dispatch()

    def answer(
        self, status: int, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send JSON, or bytes as they are; flask's error without a body."""
        if body is None:
            body = {"code": status, "status": self.responses[status][0]}
        content = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        headers = headers or {}
        if "Content-Type" not in headers:
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(timestamp, usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _dispatch(self) -> None:
        state = self.server_state
        parts = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        self.body = json.loads(self.rfile.read(length) or b"{}")
        self.query = dict(urllib.parse.parse_qsl(parts.query))
        faults = state.faults
        if parts.path.startswith("/store/"):
            faults = state.store_faults
        else:
            state.requests.append(f"{self.command} {parts.path}")
            state.queries.append(self.query)
        fault = faults.pop(0) if faults else state.breakage(f"{self.command} {parts.path}")
        if fault is not None:
            fault(self)
            return
        if parts.path.startswith("/store/"):
            self._store(parts.path.removeprefix("/store/"))
            return
        path = parts.path
        if not state.quirks.encoded_slashes:
            path = re.sub("//+", "/", urllib.parse.unquote(path))
        self._route(path)

    def _route(self, path: str) -> None:
        state = self.server_state
        _, first, *rest = path.split("/", 2)
        tail = rest[0] if rest else ""
        if (first, tail) == ("config", "versions"):
            self.answer(200, {"versions": state.versions})
            return
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            self.answer(401, {"msg": "Missing Authorization Header"})
            return
        if token not in state.users:
            self.answer(422, {"msg": "Not enough segments"})
            return
        self.username = state.users[token]
        if first == "me":
            self.answer(
                200,
                {
                    "username": self.username,
                    "is_admin": False,
                    "search_permissions_on_base_uris": state.permissions,
                    "register_permissions_on_base_uris": state.register,
                },
            )
        elif first == "uris" and self.command == "POST":
            self._listing()
        elif first == "uuids":
            uuid = tail.partition("/")[0]
            self.answer(200, [entry for entry in state.entries if entry["uuid"] == uuid])
        elif first in quirky_changes.ROUTES and self.command != "GET":
            state.before_change()
            quirky_changes.change(self, first, tail)
        elif first in ("manifests", "readmes", "tags", "annotations", "uris"):
            self._described(first, tail)
        elif first == "signed-urls" and _knows_signing(state):
            self._signed(*tail.partition("/")[::2])
        else:
            self.answer(404)

    def _listing(self) -> None:
        state = self.server_state
        quirks = state.quirks
        if quirks.refuses_sort and "sort" in self.query:
            errors = {"query": {"sort": ["Unknown field."]}}
            self.answer(422, {"code": 422, "errors": errors, "status": "Unprocessable Entity"})
            return
        wanted = set(self.body.get("base_uris", state.permissions)) & set(state.permissions)
        if not wanted:
            self.answer(200, [])
            return
        found = [
            entry
            for entry in state.entries
            if entry["base_uri"] in wanted and self._is_searched_for(entry)
        ]
        found.sort(key=lambda entry: str(entry["frozen_at"]))
        size = quirks.page_size or int(self.query.get("page_size", 10))
        page = int(self.query.get("page", 1))
        pages = -(-len(found) // size)
        if page > max(pages, 1):
            if quirks.beyond_the_end == "404":
                self.answer(404)
                return
            page = pages if quirks.beyond_the_end == "last page" else page
        headers = {}
        if quirks.sends_pagination:
            total = len(found) if quirks.total is ... else quirks.total
            pagination = {"total": total, "total_pages": pages}
            headers["X-Pagination"] = json.dumps(pagination)
        self.answer(200, found[(page - 1) * size : page * size], headers)

    def _is_searched_for(self, entry: dict[str, Any]) -> bool:
        if set(self.body) <= {"base_uris"}:  # then entries may be of any form
            return True
        described = self.server_state.described[entry["uri"]]
        creators = self.body.get("creator_usernames", [entry["creator_username"]])
        if entry["creator_username"] not in creators:
            return False
        if not set(self.body.get("tags", [])) <= set(described["tags"]):
            return False
        free_text = self.body.get("free_text")
        texts = [described["readme"], json.dumps([entry, described["annotations"]])]
        return free_text is None or has_words(free_text, texts)

    def _uri(self, text: str, *, takes_suffix: bool) -> str | None:
        """Return the URI in a path if it may be read; answers otherwise."""
        uri = urllib.parse.unquote(text)
        if takes_suffix and "://" not in uri:
            uri = uri.replace("/", "://", 1)
        if uri.rpartition("/")[0] not in self.server_state.permissions:
            self.answer(403)
        elif uri not in self.server_state.described:
            self.answer(404)
        else:
            return uri
        return None

    def _described(self, what: str, text: str) -> None:
        uri = self._uri(text, takes_suffix=True)
        if uri is not None:
            described = self.server_state.described[uri]
            if what == "manifests":
                self.answer(200, described["manifest"])
            elif what == "uris":
                self.answer(200, next(e for e in self.server_state.entries if e["uri"] == uri))
            else:
                key = what.removesuffix("s") if what == "readmes" else what
                self.answer(200, {key: described[key]})

    def _signed(self, what: str, text: str) -> None:
        identifier = ""
        if what == "item":
            text, _, identifier = text.rpartition("/")
        uri = self._uri(text, takes_suffix=False)
        if uri is None:
            return
        state = self.server_state
        described = state.described[uri]
        known = described["manifest"]["items"]
        answer: dict[str, Any] = {"uri": uri, "expiry_seconds": 3600}
        if what == "items":
            wanted = self.body["identifiers"]
            if "dserverfs.server.signed_urls" not in state.versions:
                self.answer(404)
            elif len(wanted) > state.quirks.max_batch:
                self.answer(400, {"code": 400, "message": "too many", "status": "Bad Request"})
            elif not set(wanted) <= set(known):
                self.answer(404)
            else:
                answer["item_urls"] = self._item_urls(uri, wanted)
                self.answer(200, {**answer, **state.quirks.odd_answer})
        elif what == "item":
            if identifier not in known:
                self.answer(404)
                return
            answer["url"] = self._item_urls(uri, [identifier])[identifier]
            self.answer(200, {**answer, **state.quirks.odd_answer})
        else:
            uuid = uri.rpartition("/")[2]
            answer["admin_metadata_url"] = self._url(f"{uuid}/dtool")
            answer["readme_url"] = self._url(f"{uuid}/README.yml")
            stored = described["stored"]
            answer["tags"] = stored["tags"]
            names = {"overlay": described["overlays"], "annotation": stored["annotations"]}
            for kind in names:
                answer[f"{kind}_urls"] = {
                    name: self._url(f"{uuid}/{kind}s/{name}.json") for name in names[kind]
                }
            if self.query.get("items") != "false" or not state.quirks.knows_items_false:
                answer["item_urls"] = self._item_urls(uri, known)
            self.answer(200, {**answer, **state.quirks.odd_answer})

    def _item_urls(self, uri: str, identifiers: Any) -> dict[str, str]:
        uuid = uri.rpartition("/")[2]
        return {name: self._url(f"{uuid}/data/{name}") for name in identifiers}

    def _url(self, key: str) -> str:
        query = "signature=secret"
        if self.server_state.quirks.amz_dates:
            now = datetime.datetime.now(datetime.timezone.utc)
            query += f"&X-Amz-Date={now:%Y%m%dT%H%M%SZ}&X-Amz-Expires=3600"
        return f"{self.server_state.url}/store/{key}?{query}"

    def _store(self, key: str) -> None:
        content = self.server_state.objects.get(key)
        self.server_state.store_headers.append(dict(self.headers.items()))
        if "Authorization" in self.headers:
            self.answer(400, b"<Error><Code>InvalidArgument</Code></Error>")
        elif content is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.answer(200, content)


def _knows_signing(state: QuirkyServer) -> bool:
    return any("sign" in name for name in state.versions)


def says(status: int, body: Any = None, **headers: str) -> Fault:
    """Answer that."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, body, named)


@contextlib.contextmanager
def quirky_server() -> Iterator[QuirkyServer]:
    """Run one on a free port of 127.0.0.1."""
    state = QuirkyServer()
    with serving(Handler, server_state=state) as state.url:
        yield state
