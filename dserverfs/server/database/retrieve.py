"""Retrieve plugin of dservercore: README, manifest, annotations and tags of a dataset.

Like `search` it works in dservercore's session and leaves the commit to it. A
manifest is kept as it is sent: JSON, compressed with gzip; earlier versions kept
the text. The item identifiers of the manifests used last are kept in memory,
because a signed URL for one item must not cost the parsing of a manifest of a
million.
"""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from dservercore import RetrieveABC, UnknownURIError
from flask import current_app
from sqlalchemy import select, update

from dserverfs.base.item_stream import ItemStream
from dserverfs.base.limits import is_identifier
from dserverfs.server.database import sql
from dserverfs.server.database.dataset_info import readme_text
from dserverfs.server.database.tables import description

# About 100 bytes each.
_MAX_CACHED_IDENTIFIERS = 1_000_000
# 173 MB, a million items, become 53 MB in 1.8 s; level 6 makes 50 MB of it in 3.8 s.
_COMPRESSION_LEVEL = 1
_PIECE_BYTES = 64 * 1024


class Retrieve(RetrieveABC):  # type: ignore[misc]
    """dservercore makes one per app."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._identifiers: OrderedDict[int, frozenset[str]] = OrderedDict()

    def init_app(self, app: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        return {}

    def get_config_secrets_to_obfuscate(self) -> list[str]:
        return []

    def register_dataset(self, dataset_info: Mapping[str, Any]) -> None:
        """Keep a dataset's description; replaces an earlier one of its URI."""
        self.delete_dataset(dataset_info["uri"])
        sql.insert_row(
            description,
            uri=dataset_info["uri"],
            readme=_kept_readme(dataset_info),
            annotations=json.dumps(dataset_info["annotations"]),
            tags=json.dumps(sorted(set(dataset_info["tags"]))),
            manifest=_compressed(_json_of(dataset_info["manifest"])),
        )

    def update_dataset(
        self, uri: str, *, readme: str, annotations: Mapping[str, Any], tags: list[str]
    ) -> None:
        """Replace the description of a dataset; its manifest stays."""
        values = {
            "readme": readme,
            "annotations": json.dumps(annotations),
            "tags": json.dumps(tags),
        }
        sql.execute(update(description).where(description.c.uri == uri).values(values))

    def delete_dataset(self, dataset_uri: str) -> None:
        """Forget a dataset; does nothing if it is not known."""
        sql.delete_rows(description, description.c.uri == dataset_uri)

    def get_readme(self, uri: str) -> Any:
        """Return the README as it was registered: a text, or the mapping that it is."""
        kept: bytes | str = _column(uri, "readme")
        return json.loads(kept) if isinstance(kept, bytes) else kept

    def get_readme_text(self, uri: str) -> str:
        return readme_text({"readme": self.get_readme(uri)})

    def get_manifest(self, uri: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(gzip.decompress(self.get_compressed_manifest(uri)))
        return manifest

    def get_compressed_manifest(self, uri: str) -> bytes:
        """Return the manifest's JSON as gzip keeps it; raises UnknownURIError."""
        kept: bytes | str = _column(uri, "manifest")
        return _compressed(kept) if isinstance(kept, str) else kept

    def iter_items(self, uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each item's identifier and entry, in no order; some thousand are in memory.

        Raises UnknownURIError before the first.
        """
        stream = ItemStream(f"the manifest of {uri}")
        kept = io.BytesIO(self.get_compressed_manifest(uri))
        with gzip.GzipFile(fileobj=kept) as manifest:
            while piece := manifest.read(_PIECE_BYTES):
                yield from stream.feed(piece).items()
        yield from stream.close().items()

    def get_annotations(self, uri: str) -> dict[str, Any]:
        annotations: dict[str, Any] = json.loads(_column(uri, "annotations"))
        return annotations

    def get_tags(self, uri: str) -> list[str]:
        tags: list[str] = json.loads(_column(uri, "tags"))
        return tags

    def get_identifiers(self, uri: str) -> frozenset[str]:
        """Return the identifiers of the dataset's items; raises UnknownURIError.

        Leaves out keys that are no identifiers: a manifest may have been registered with
        any text in its place, and a signed URL of `../` would be one of another object.
        """
        version = _column(uri, "id")
        with self._lock:
            if version in self._identifiers:
                self._identifiers.move_to_end(version)
                return self._identifiers[version]
        identifiers = frozenset(
            identifier for identifier, _ in self.iter_items(uri) if is_identifier(identifier)
        )
        with self._lock:
            self._identifiers[version] = identifiers
            self._shrink_locked()
        return identifiers

    def _shrink_locked(self) -> None:
        kept = sum(len(identifiers) for identifiers in self._identifiers.values())
        while kept > _MAX_CACHED_IDENTIFIERS and len(self._identifiers) > 1:
            kept -= len(self._identifiers.popitem(last=False)[1])


def registered() -> Retrieve:
    """Return the plugin of the app that answers this request; needs an app context."""
    found: Retrieve = current_app.retrieve  # type: ignore[attr-defined]
    return found


def _kept_readme(dataset_info: Mapping[str, Any]) -> bytes | str:
    """Return a text as it is and a mapping as bytes, so that they are known apart."""
    readme = readme_text(dataset_info)
    return readme if isinstance(dataset_info["readme"], str) else readme.encode()


def _json_of(manifest: Mapping[str, Any]) -> str:
    # dservercore sorts keys, and clients look for the version before the items.
    return json.dumps(dict(sorted(manifest.items())), separators=(",", ":"))


def _compressed(manifest: str) -> bytes:
    return gzip.compress(manifest.encode(), _COMPRESSION_LEVEL, mtime=0)


def _column(uri: str, column: str) -> Any:
    value = sql.value(select(description.c[column]).where(description.c.uri == uri))
    if value is None:
        raise UnknownURIError(uri)
    return value
