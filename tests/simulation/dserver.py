"""A dserver and its store in memory: the same routes, answers and statuses as `dserverfs serve`.

`answer` takes one request and returns one answer, at once; what may happen on the way is the
network's. tests/simulation/test_dserver.py serves it over HTTP and asks it and the real
server the same. No clock of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulation import block_hashes
from tests.simulation.block_hashes import BlockHashes
from tests.simulation.store import STORE, Answer, Request, Store, answer_of, content_md5

API = "https://lab.sim"
READ_S, UPLOAD_S = 3600, 4 * 3600
_PAGE = 100


class Refused(Exception):
    """An answer that is an error: its status and the server's message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Person:
    """A user, and the base URIs where that one may look and register."""

    name: str
    search: set[str]
    register: set[str]


@dataclass
class Registered:
    """A frozen dataset."""

    admin: dict[str, Any]
    uri: str
    base_uri: str
    manifest: dict[str, Any]
    readme: str
    tags: set[str]
    annotations: dict[str, Any]
    overlays: dict[str, Any]
    size_in_bytes: int

    def entry(self) -> dict[str, Any]:
        """Return what listings tell of it."""
        admin = {key: self.admin[key] for key in ("uuid", "name", "creator_username")}
        dates = {key: self.admin[key] for key in ("created_at", "frozen_at")}
        return {
            **admin,
            **dates,
            "uri": self.uri,
            "base_uri": self.base_uri,
            "number_of_items": len(self.manifest["items"]),
            "size_in_bytes": self.size_in_bytes,
        }


@dataclass
class Upload:
    """An upload that is announced and not complete."""

    uri: str
    base_uri: str
    username: str
    started_at: float
    body: dict[str, Any]
    items: dict[str, dict[str, Any]]  # by identifier, as announced


Asked = tuple[Person, str, dict[str, str], Any]  # who, the path's rest, the query, the body


class Dserver:
    """The state of the server and its store."""

    def __init__(
        self, now_s: Callable[[], float], *, max_put_bytes: int, part_bytes: int = 0
    ) -> None:
        self._now_s = now_s
        self.max_put_bytes = max_put_bytes
        self.part_bytes = part_bytes or max_put_bytes // 2
        self.people: dict[str, Person] = {}  # by token
        self.expired: set[str] = set()
        self.datasets: dict[str, Registered] = {}  # by URI
        self.uploads: dict[str, Upload] = {}  # by URI
        self._store = Store(now_s)
        self._block_hashes = BlockHashes(self._store)
        self.objects = self._store.objects  # by bucket/key
        self.changed: Callable[[Registered, str, str], None] = lambda dataset, what, who: None
        self._routes: list[tuple[str, re.Pattern[str], Callable[[Asked], Any]]] = [
            ("GET", re.compile(r"/me\Z()"), self._me),
            ("POST", re.compile(r"/uris\Z()"), self._list),
            ("GET", re.compile(r"/uuids/([^/]+)\Z"), self._by_uuid),
            ("GET", re.compile(r"/uris/([^/]+)\Z"), lambda a: self._read(a).entry()),
            ("GET", re.compile(r"/manifests/([^/]+)\Z"), lambda a: self._read(a).manifest),
            ("GET", re.compile(r"/readmes/([^/]+)\Z"), lambda a: {"readme": self._read(a).readme}),
            ("GET", re.compile(r"/tags/([^/]+)\Z"), lambda a: {"tags": sorted(self._read(a).tags)}),
            (
                "GET",
                re.compile(r"/annotations/([^/]+)\Z"),
                lambda a: {"annotations": self._read(a).annotations},
            ),
            ("PUT", re.compile(r"/readmes/([^/]+)\Z"), self._put_readme),
            ("POST", re.compile(r"/tags/([^/]+/[^/]+)\Z"), self._put_tag),
            ("DELETE", re.compile(r"/tags/([^/]+/[^/]+)\Z"), self._delete_tag),
            ("PUT", re.compile(r"/annotations/([^/]+/[^/]+)\Z"), self._put_annotation),
            ("DELETE", re.compile(r"/annotations/([^/]+/[^/]+)\Z"), self._delete_annotation),
            ("PUT", re.compile(r"/names/([^/]+)\Z"), self._put_name),
            ("GET", re.compile(r"/signed-urls/dataset/([^/]+)\Z"), self._sign_dataset),
            ("POST", re.compile(r"/signed-urls/items/([^/]+)\Z"), self._sign_items),
            ("POST", re.compile(r"/signed-urls/upload/([^/]+)\Z"), self._announce),
            ("POST", re.compile(r"/signed-urls/upload-parts\Z()"), self._begin_parts),
            ("POST", re.compile(r"/signed-urls/upload-parts/sign\Z()"), self._sign_parts),
            ("POST", re.compile(r"/signed-urls/upload-parts/complete\Z()"), self._complete_parts),
            ("POST", re.compile(r"/signed-urls/upload-complete\Z()"), self._complete),
            ("POST", re.compile(r"/signed-urls/block-hashes/([^/]+)\Z"), self._add_block_hashes),
            (
                "POST",
                re.compile(r"/signed-urls/block-hashes-complete\Z()"),
                self._complete_block_hashes,
            ),
        ]

    # The wire

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request to server or store."""
        try:
            if request.url.startswith(STORE):
                return self._store.answer(request)
            return self._of_server(request)
        except Refused as error:
            body = {"code": error.status, "status": "refused", "message": str(error)}
            return self._answer(error.status, json.dumps(body).encode())

    def _answer(self, status: int, body: bytes) -> Answer:
        return answer_of(self._now_s(), status, body)

    def _of_server(self, request: Request) -> Answer:
        path, _, query = request.url.removeprefix(API).partition("?")
        if path == "/config/versions":
            names = ("signed_urls", "multipart", "metadata", "publications", "block_hashes")
            ours = {f"dserverfs_{name}": "0.0.1" for name in names}
            versions = {"dservercore": "0.22.0", "dserver_signed_url_plugin": "1", **ours}
            return self._answer(200, json.dumps({"versions": versions}).encode())
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        person = self.people.get(token)
        if person is None or token in self.expired:
            return self._answer(401, json.dumps({"msg": "Token has expired"}).encode())
        for method, pattern, handle in self._routes:
            match = pattern.match(path)
            if method == request.method and match is not None:
                body = json.loads(request.body) if request.body else None
                asked = (person, match[1], dict(urllib.parse.parse_qsl(query)), body)
                result = handle(asked)
                if isinstance(result, Answer):
                    return result
                status = 201 if method == "PUT" and path.startswith("/names") else 200
                return self._answer(status, json.dumps(result).encode())
        raise Refused(404, "no such route")

    # Reading

    def _me(self, asked: Asked) -> Any:
        person = asked[0]
        return {
            "username": person.name,
            "is_admin": False,
            "search_permissions_on_base_uris": sorted(person.search),
            "register_permissions_on_base_uris": sorted(person.register),
        }

    def _list(self, asked: Asked) -> Answer:
        person, _, query, body = asked
        wanted = set(body["base_uris"]) & person.search
        found = [each.entry() for each in self.datasets.values() if each.base_uri in wanted]
        found.sort(key=lambda entry: (entry["frozen_at"], entry["uuid"]))
        page, size = int(query.get("page", 1)), int(query.get("page_size", _PAGE))
        shown = found[(page - 1) * size : page * size]
        answer = self._answer(200, json.dumps(shown).encode())
        return answer._replace(
            headers={**answer.headers, "X-Pagination": json.dumps({"total": len(found)})}
        )

    def _by_uuid(self, asked: Asked) -> Any:
        person, uuid, _, _ = asked
        datasets = self.datasets.values()
        return [
            each.entry()
            for each in datasets
            if each.admin["uuid"] == uuid and each.base_uri in person.search
        ]

    def _read(self, asked: Asked) -> Registered:
        return self._dataset(urllib.parse.unquote(asked[1]), asked[0].search)

    def _dataset(self, uri: str, allowed: set[str]) -> Registered:
        if uri.rpartition("/")[0] not in allowed:
            raise Refused(403, "no permission")
        if uri not in self.datasets:
            raise Refused(404, "no such dataset")
        return self.datasets[uri]

    # Changing

    def _change(self, asked: Asked) -> tuple[Registered, str]:
        uri, _, name = asked[1].partition("/")
        dataset = self._dataset(urllib.parse.unquote(uri), asked[0].register)
        return dataset, urllib.parse.unquote(name)

    def _put_readme(self, asked: Asked) -> Any:
        dataset, _ = self._change(asked)
        dataset.readme = asked[3]["readme"]
        self.objects[f"{_place(dataset.uri)}/README.yml"] = dataset.readme.encode()
        self.changed(dataset, "README.yml", asked[0].name)
        return {"readme": dataset.readme}

    def _put_tag(self, asked: Asked) -> Any:
        dataset, tag = self._change(asked)
        dataset.tags.add(tag)
        self.changed(dataset, f"tags/{tag}", asked[0].name)
        return {"tags": sorted(dataset.tags)}

    def _delete_tag(self, asked: Asked) -> Any:
        dataset, tag = self._change(asked)
        dataset.tags.discard(tag)
        self.changed(dataset, f"tags/{tag}", asked[0].name)
        return {"tags": sorted(dataset.tags)}

    def _put_annotation(self, asked: Asked) -> Any:
        dataset, name = self._change(asked)
        dataset.annotations[name] = asked[3]["value"]
        self._store_annotations(dataset)
        self.changed(dataset, f"annotations/{name}", asked[0].name)
        return {"annotations": dataset.annotations}

    def _delete_annotation(self, asked: Asked) -> Any:
        dataset, name = self._change(asked)
        dataset.annotations.pop(name, None)
        self.objects.pop(f"{_place(dataset.uri)}/annotations/{name}.json", None)
        self.changed(dataset, f"annotations/{name}", asked[0].name)
        return {"annotations": dataset.annotations}

    def _put_name(self, asked: Asked) -> Any:
        dataset, _ = self._change(asked)
        dataset.admin["name"] = asked[3]["name"]
        self.objects[f"{_place(dataset.uri)}/dtool"] = json.dumps(dataset.admin).encode()
        self.changed(dataset, "name", asked[0].name)
        return {"name": dataset.admin["name"]}

    def _store_annotations(self, dataset: Registered) -> None:
        for name, value in dataset.annotations.items():
            key = f"{_place(dataset.uri)}/annotations/{name}.json"
            self.objects[key] = json.dumps(value, indent=2).encode()

    # Signing

    def _sign_dataset(self, asked: Asked) -> Any:
        dataset = self._read(asked)
        place = _place(dataset.uri)
        body = {
            "uri": dataset.uri,
            "expiry_seconds": READ_S,
            "admin_metadata_url": self._store.signed("GET", f"{place}/dtool", READ_S),
            "manifest_url": self._store.signed("GET", f"{place}/manifest.json", READ_S),
            "readme_url": self._store.signed("GET", f"{place}/README.yml", READ_S),
            "tags": sorted(dataset.tags),
            **self._block_hashes.signed(place, READ_S),
        }
        for kind, names in (("overlay", dataset.overlays), ("annotation", dataset.annotations)):
            body[f"{kind}_urls"] = {
                name: self._store.signed("GET", f"{place}/{kind}s/{name}.json", READ_S)
                for name in names
            }
        if asked[2].get("items") != "false":
            body["item_urls"] = self._item_urls(dataset, dataset.manifest["items"])
        return body

    def _sign_items(self, asked: Asked) -> Any:
        dataset = self._read(asked)
        wanted = asked[3]["identifiers"]
        if any(each not in dataset.manifest["items"] for each in wanted):
            raise Refused(404, "no such item")
        urls = self._item_urls(dataset, wanted)
        hashes = self._block_hashes.signed(_place(dataset.uri), READ_S)
        return {"uri": dataset.uri, "expiry_seconds": READ_S, "item_urls": urls, **hashes}

    def _item_urls(self, dataset: Registered, wanted: Any) -> dict[str, str]:
        place = _place(dataset.uri)
        return {each: self._store.signed("GET", f"{place}/data/{each}", READ_S) for each in wanted}

    # Uploading

    def _announce(self, asked: Asked) -> Any:
        person, quoted, _, body = asked
        base_uri = urllib.parse.unquote(quoted)
        if base_uri not in person.register:
            raise Refused(403, "no permission")
        uri = f"{base_uri}/{body['uuid']}"
        if uri in self.datasets:
            raise Refused(409, f"{uri} exists already")
        for other in self.uploads.values():
            if other.uri.endswith(body["uuid"]) and other.uri != uri:
                raise Refused(409, f"{body['uuid']} is being uploaded to another base URI")
        before = self.uploads.get(uri)
        if before is not None and before.username != person.name:
            raise Refused(409, f"{uri} is being uploaded by {before.username}")
        items = {hashlib.sha1(each["relpath"].encode()).hexdigest(): each for each in body["items"]}
        started_at = self._now_s() if before is None else before.started_at
        upload = Upload(uri, base_uri, person.name, started_at, body, items)
        self.uploads[uri] = upload
        place = _place(uri)
        urls: dict[str, Any] = {}
        for identifier, item in items.items():
            relpath = item["relpath"]
            if item["size_in_bytes"] > self.max_put_bytes:
                urls[identifier] = {"relpath": relpath, "headers": {}, "in_parts": True}
                continue
            headers = {"Content-MD5": content_md5(item["hash"])}
            url = self._store.signed(
                "PUT", f"{place}/data/{identifier}", UPLOAD_S, f"&md5={item['hash']}"
            )
            urls[identifier] = {"url": url, "relpath": relpath, "headers": headers}
        readme = self._store.signed("PUT", f"{place}/uploaded/README.yml", UPLOAD_S)
        return {
            **self._block_hashes.announced(place, items, UPLOAD_S),
            "uuid": body["uuid"],
            "uri": uri,
            "base_uri": base_uri,
            "expiry_seconds": UPLOAD_S,
            "upload_urls": {"readme": readme, "items": urls},
            "stored": sorted(each for each in items if self._is_stored(upload, each)),
        }

    def _is_stored(self, upload: Upload, identifier: str) -> bool:
        content = self.objects.get(f"{_place(upload.uri)}/data/{identifier}")
        wanted = upload.items[identifier]["hash"]
        return content is not None and hashlib.md5(content).hexdigest() == wanted

    def _upload(self, asked: Asked) -> Upload:
        upload = self.uploads.get(asked[3]["uri"])
        if upload is None:
            raise Refused(400, f"{asked[3]['uri']} has no pending upload")
        if upload.username != asked[0].name:
            raise Refused(409, f"is being uploaded by {upload.username}")
        return upload

    def _begin_parts(self, asked: Asked) -> Any:
        upload, identifier = self._upload(asked), asked[3]["identifier"]
        if identifier not in upload.items:
            raise Refused(404, "no such item")
        if self._is_stored(upload, identifier):
            return {"stored": True}
        stored = self._store.parts.setdefault(f"{_place(upload.uri)}/data/{identifier}", {})
        etags = {str(number): hashlib.md5(part).hexdigest() for number, part in stored.items()}
        return {"stored": False, "part_bytes": self.part_bytes, "etags": etags}

    def _sign_parts(self, asked: Asked) -> Any:
        upload, identifier = self._upload(asked), asked[3]["identifier"]
        key = f"{_place(upload.uri)}/data/{identifier}"
        urls = {}
        for number, md5 in asked[3]["parts"].items():
            url = self._store.signed("PUT", key, UPLOAD_S, f"&md5={md5}&part={number}")
            urls[number] = {"url": url, "headers": {"Content-MD5": content_md5(md5)}}
        return {"expiry_seconds": UPLOAD_S, "urls": urls}

    def _complete_parts(self, asked: Asked) -> Any:
        upload, identifier = self._upload(asked), asked[3]["identifier"]
        key = f"{_place(upload.uri)}/data/{identifier}"
        stored = self._store.parts.get(key)
        if stored is None:
            raise Refused(409, "was not begun")
        size = upload.items[identifier]["size_in_bytes"]
        content = b"".join(stored[number] for number in sorted(stored))
        if len(content) != size or len(asked[3]["etags"]) != len(stored):
            raise Refused(422, "parts not as begun")
        self.objects[key] = content
        del self._store.parts[key]
        return {"stored": True}

    def _complete(self, asked: Asked) -> Any:
        upload = self._upload(asked)
        missing = [each for each in upload.items if not self._is_stored(upload, each)]
        if missing:
            names = ", ".join(upload.items[each]["relpath"] for each in missing)
            raise Refused(422, f"{upload.uri} cannot be completed: {names} not uploaded")
        self._adopt_block_hashes(upload.uri, upload.items)
        self.register(upload)
        del self.uploads[upload.uri]
        return {"uri": upload.uri, "status": "registered", "name": upload.body["name"]}

    def _adopt_block_hashes(self, uri: str, items: dict[str, dict[str, Any]]) -> bool:
        try:
            return self._block_hashes.adopt(_place(uri), items)
        except ValueError as error:
            raise Refused(422, str(error)) from error

    def _add_block_hashes(self, asked: Asked) -> Any:
        dataset = self._without_block_hashes(asked[0], urllib.parse.unquote(asked[1]))
        where = self._block_hashes.place_to_put(_place(dataset.uri), UPLOAD_S)
        return {"uri": dataset.uri, "expiry_seconds": UPLOAD_S, **where}

    def _complete_block_hashes(self, asked: Asked) -> Any:
        dataset = self._without_block_hashes(asked[0], asked[3]["uri"])
        if not self._adopt_block_hashes(dataset.uri, dataset.manifest["items"]):
            raise Refused(422, "its block hashes were not uploaded")
        return {"uri": dataset.uri, "status": "stored"}

    def _without_block_hashes(self, person: Person, uri: str) -> Registered:
        dataset = self._dataset(uri, person.register)
        if not block_hashes.are_of(dataset.manifest["items"]):
            raise Refused(422, f"{uri} has no item of more than one block")
        if self._block_hashes.are_stored(_place(uri)):
            raise Refused(409, f"{uri} has block hashes already")
        return dataset

    def register(self, upload: Upload) -> Registered:
        """Freeze and register an upload whose items are stored."""
        body, place = upload.body, _place(upload.uri)
        readme = self.objects.pop(f"{place}/uploaded/README.yml", b"")
        items = {
            identifier: {
                "hash": item["hash"],
                "relpath": item["relpath"],
                "size_in_bytes": item["size_in_bytes"],
                "utc_timestamp": item["utc_timestamp"],
            }
            for identifier, item in upload.items.items()
        }
        created_at = body.get("created_at")
        admin = {
            "uuid": body["uuid"],
            "dtoolcore_version": "3.18.2",
            "name": body["name"],
            "type": "dataset",
            "creator_username": body["creator_username"],
            "created_at": upload.started_at if created_at is None else created_at,
            "frozen_at": body["frozen_at"],
        }
        manifest = {"dtoolcore_version": "3.18.2", "hash_function": "md5sum_hexdigest"}
        dataset = Registered(
            admin,
            upload.uri,
            upload.base_uri,
            {**manifest, "items": items},
            readme.decode(),
            set(body.get("tags", ())),
            dict(body.get("annotations", {})),
            dict(body.get("overlays", {})),
            sum(item["size_in_bytes"] for item in items.values()),
        )
        self.objects[f"{place}/dtool"] = json.dumps(admin).encode()
        self.objects[f"{place}/manifest.json"] = json.dumps(dataset.manifest).encode()
        self.objects[f"{place}/README.yml"] = readme
        self._store_annotations(dataset)
        for name, values in dataset.overlays.items():
            self.objects[f"{place}/overlays/{name}.json"] = json.dumps(values).encode()
        self.datasets[upload.uri] = dataset
        self.changed(dataset, "registered", upload.username)
        return dataset

    def delete(self, uri: str) -> None:
        """Delete a dataset, as an administrator does."""
        self.changed(self.datasets.pop(uri), "deleted", "administrator")
        for key in [key for key in self.objects if key.startswith(f"{_place(uri)}/")]:
            del self.objects[key]


def _place(uri: str) -> str:
    """Return the bucket and prefix of a dataset."""
    return uri.partition("://")[2]
