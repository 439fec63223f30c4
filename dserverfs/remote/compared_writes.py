"""Changes of metadata on a server whose index and store are two sets, compared before and after.

Used by the metadata writes for dservercore's development branch. Its store is what
dtool reads; its index is what it shows and searches. It takes whole sets: of tags the
one it is sent, of annotations its index's, plus or minus one. It writes that over the
store's and answers 200 whatever came of it; with the released retrieve plugins the
index does not learn of it. So what dtool-s3 or an earlier change put into the store
would be deleted by the next. Here the store's set is read first, all of it is sent,
and it is read again afterwards: where something else has vanished it is put back, and
the change fails.

The server compares nothing itself, so of two that change a dataset at once one may
write over the other. The pause before the second reading is longer than it takes from
another's first reading to its writing; a client that does as we do finds out, and does
it again. Blocking and thread-safe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from dserverfs.base.errors import ProtocolError, Unsupported, UsageError
from dserverfs.base.limits import MAX_WHOLE_MANIFEST_BYTES, parse_json
from dserverfs.base.model import Dataset
from dserverfs.base.printable import listed
from dserverfs.base.retry import chance
from dserverfs.remote.api import Resolver
from dserverfs.remote.routes import Routes

# A reading of the store takes such a server 0.4 s, and writing as long.
SETTLE_S = 1.0
ATTEMPTS = 3
_KEPT = ("base_uri", "uuid", "name", "creator_username")
_DATES = ("frozen_at", "created_at")
_COUNTS = ("number_of_items", "size_in_bytes")

# Values by name: JSON in one form, so that 1, 1.0 and true differ; "" for a tag.
_Set = Mapping[str, str]


class Write(Protocol):
    """How a change is sent; see `MetadataWrites`."""

    def __call__(
        self,
        dataset: Dataset,
        what: str,
        method: str,
        route: str,
        name: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> Any: ...


class _Kind(NamedTuple):
    """Tags or annotations: how they are read, and how the store gets a whole set."""

    what: str
    read: Callable[[Dataset], _Set]
    # Of the set, and what of it is changed; returns the names that the server says it wrote.
    send: Callable[[Dataset, _Set, str], frozenset[str]]


class ComparedWrites:
    """Changes of the datasets of one such server."""

    def __init__(
        self,
        routes: Routes,
        resolver: Resolver,
        write: Write,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._routes = routes
        self._resolver = resolver
        self._write = write
        self._pause = pause
        self._tags = _Kind("tag", self._stored_tags, self._send_tags)
        self._annotations = _Kind("annotation", self._stored_annotations, self._send_annotations)

    def put_readme(self, dataset: Dataset, readme: str) -> None:
        self._write(dataset, "README", "PUT", "readmes", body={"readme": readme})
        if self._resolver.stored_readme(dataset) != readme.encode("utf-8"):
            raise self._not_made(dataset, "README")

    def put_tag(self, dataset: Dataset, tag: str) -> None:
        self._change(self._tags, dataset, tag, "")

    def delete_tag(self, dataset: Dataset, tag: str) -> None:
        self._change(self._tags, dataset, tag, None)

    def put_annotation(self, dataset: Dataset, name: str, value: Any) -> None:
        self._change(self._annotations, dataset, name, _text(value))

    def delete_annotation(self, dataset: Dataset, name: str) -> None:
        self._change(self._annotations, dataset, name, None)

    def _change(self, kind: _Kind, dataset: Dataset, name: str, value: str | None) -> None:
        """Give `name` its value in the store's set, or take it away (None)."""
        before = kind.read(dataset)
        for _ in range(ATTEMPTS):
            wanted = _changed(before, name, value)
            if wanted == before:
                return
            written = kind.send(dataset, wanted, name)
            self._pause(chance.uniform(SETTLE_S, 1.5 * SETTLE_S))
            now = kind.read(dataset)
            # An entry that was written and is gone was taken away by another client since.
            vanished = {
                other: text
                for other, text in _changed(before, name, None).items()
                if other not in written and other not in now
            }
            if vanished:
                raise self._put_back(kind, dataset, name, now, vanished)
            before = now  # with what others have changed
        if _changed(before, name, value) != before:
            raise self._not_made(dataset, f"{kind.what} {name}")

    def _put_back(
        self, kind: _Kind, dataset: Dataset, name: str, now: _Set, vanished: _Set
    ) -> ProtocolError:
        """Put entries back that have vanished; return the error that says so."""
        first = min(vanished)
        try:
            kind.send(dataset, {**now, **vanished}, first)
            self._pause(SETTLE_S)
            is_back = vanished.keys() <= kind.read(dataset).keys()
            done = "was put back" if is_back else "could not be put back"
        except (ProtocolError, Unsupported, UsageError) as error:
            done = f"could not be put back ({error})"
        return ProtocolError(
            f"{self._routes.server_url}: while {kind.what} {name} of {dataset.uri} was changed,"
            f" {kind.what} {listed(sorted(vanished))} vanished, and {done}; look at what it"
            " has now, and try again",
            uri=dataset.uri,
        )

    # Tags

    def _stored_tags(self, dataset: Dataset) -> _Set:
        return dict.fromkeys(self._resolver.metadata_urls(dataset).tags, "")

    def _send_tags(self, dataset: Dataset, wanted: _Set, name: str) -> frozenset[str]:
        body = {"tags": sorted(wanted)}
        return _names(self._write(dataset, "tags", "PUT", "tags", body=body), "tags")

    # Annotations

    def _stored_annotations(self, dataset: Dataset) -> _Set:
        found = self._resolver.stored_annotations(dataset)
        return {name: _text(_parsed(dataset, name, text)) for name, text in found.items()}

    def _indexed_annotations(self, dataset: Dataset) -> _Set:
        answer = self._routes.core("annotations", dataset.uri).json()
        values = answer.get("annotations") if isinstance(answer, dict) else None
        if not isinstance(values, dict):
            raise ProtocolError(f"{self._routes.server_url}: no annotations of {dataset.uri}")
        return {str(name): _text(value) for name, value in values.items()}

    def _send_annotations(self, dataset: Dataset, wanted: _Set, name: str) -> frozenset[str]:
        """Have the server write `wanted`, which it makes of its index and `name`."""
        value = wanted.get(name)
        if _changed(self._indexed_annotations(dataset), name, value) != wanted:
            stored = _changed(wanted, name, self._stored_annotations(dataset).get(name))
            self._register_anew(dataset, stored)
            if _changed(self._indexed_annotations(dataset), name, value) != wanted:
                raise self._behind(dataset, "registering it anew does not change that")
        if value is None:
            answer = self._write(dataset, "annotations", "DELETE", "annotations", name)
            return _names(answer, "annotations")
        # It refuses a value that is null, and takes one that is left out for null.
        body = {} if value == "null" else {"value": json.loads(value)}
        try:
            answer = self._write(dataset, "annotations", "PUT", "annotations", name, body)
            return _names(answer, "annotations")
        except UsageError as error:
            if value != "null":
                raise
            raise UsageError(
                f"annotation {name} of {dataset.uri}: {self._routes.server_url} keeps no null;"
                " delete the annotation, or give it another value",
                uri=dataset.uri,
                status=error.status,
            ) from error

    def _register_anew(self, dataset: Dataset, annotations: _Set) -> None:
        """Have the index learn of the store's annotations, and README and tags; all else stays.

        Refused where that would name another than now as who registered the dataset.
        """
        entry = self._entry(dataset)
        user = self._resolver.user().username
        if "uploaded_by" in entry and entry["uploaded_by"] != user:
            raise self._behind(
                dataset,
                f"only {entry['uploaded_by'] or 'its operator'} can register it anew without"
                " being replaced as who has",
            )
        body = {
            **{key: entry[key] for key in _KEPT},
            **{key: str(entry[key]) for key in _DATES},
            **{key: entry[key] for key in _COUNTS if entry.get(key) is not None},
            "uri": dataset.uri,
            "type": "dataset",
            "readme": self._resolver.stored_readme(dataset).decode("utf-8"),
            "manifest": self._manifest(dataset),
            "annotations": {name: json.loads(text) for name, text in annotations.items()},
            "tags": sorted(self._stored_tags(dataset)),
        }
        try:
            self._write(dataset, "annotations", "PUT", "uris", body=body)
        except UsageError as error:
            raise self._behind(dataset, f"it does not let itself be told: {error}") from error
        after = self._entry(dataset)
        differs = [key for key in (*_KEPT, *_DATES, *_COUNTS) if entry.get(key) != after.get(key)]
        if differs:
            raise ProtocolError(
                f"{self._routes.server_url}: {dataset.uri} was registered anew, and has another"
                f" {', '.join(differs)} now",
                uri=dataset.uri,
            )

    def _manifest(self, dataset: Dataset) -> Any:
        content = bytearray()
        for piece in self._resolver.manifest_pieces(dataset):
            content += piece
            if len(content) > MAX_WHOLE_MANIFEST_BYTES:
                raise self._behind(dataset, "its manifest is too large to register it anew")
        return parse_json(bytes(content), f"{dataset.uri}: its manifest")

    def _entry(self, dataset: Dataset) -> dict[str, Any]:
        entry = self._routes.core("uris", dataset.uri).json()
        if not isinstance(entry, dict) or not {*_KEPT, *_DATES} <= entry.keys():
            raise ProtocolError(f"{self._routes.server_url}: no entry of {dataset.uri}")
        return entry

    def _behind(self, dataset: Dataset, why: str) -> Unsupported:
        return Unsupported(
            f"{dataset.uri}: its annotations cannot be changed: the index of"
            f" {self._routes.server_url} has others than the store, where a change would delete"
            f" what the index lacks; {why}. Its operator has to index the dataset again",
            uri=dataset.uri,
        )

    def _not_made(self, dataset: Dataset, what: str) -> ProtocolError:
        return ProtocolError(
            f"{self._routes.server_url} accepted a change of {what} of {dataset.uri},"
            " and did not make it",
            uri=dataset.uri,
        )


def _changed(before: _Set, name: str, value: str | None) -> dict[str, str]:
    others = {other: text for other, text in before.items() if other != name}
    return others if value is None else {**others, name: value}


def _names(answer: Any, what: str) -> frozenset[str]:
    """Return the names in the server's answer; none if it does not say."""
    written = answer.get(what) if isinstance(answer, dict) else None
    return frozenset(map(str, written)) if isinstance(written, (dict, list)) else frozenset()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _parsed(dataset: Dataset, name: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{dataset.uri}: annotation {name} is not JSON") from error
