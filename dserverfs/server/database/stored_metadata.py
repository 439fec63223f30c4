"""The changeable metadata of a dataset in a bucket, read and written as dtool-s3 does.

These are README, tags, annotations, overlays and the name. Every write is one object, or
can be repeated until it is done; nothing here knows the index, see `changes`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from dserverfs.base.errors import IntegrityError, NotFound, Unreachable, UsageError
from dserverfs.base.limits import MAX_README_BYTES
from dserverfs.server.store.layout import json_text
from dserverfs.server.store.stores import Place

_MAX_JSON_BYTES = 256 * 1024**2  # guess: a million items' overlay is 60 MB
_DATES = ("frozen_at", "created_at")


class StoredMetadata:
    """The changeable metadata of the dataset at one place."""

    def __init__(self, place: Place, clock_s: Callable[[], float] = time.time) -> None:
        self._store, self._bucket, self._keys = place
        self._clock_s = clock_s

    def readme(self) -> str:
        """Return the README; raises NotFound, and UsageError if it is not text."""
        return self._read_readme(self._keys.readme)

    def adopt_readme(self) -> str:
        """Make the README that was uploaded the dataset's; return it.

        If none was uploaded, the README that is there stays: of an attempt before, or of an
        upload that an earlier version began. If there is none, an empty one is made, as
        dtool does.
        """
        try:
            readme = self._read_readme(self._keys.uploaded_readme)
        except NotFound:
            try:
                return self.readme()
            except NotFound:
                readme = ""
        self.put_readme(readme)
        return readme

    def drop_uploaded(self) -> None:
        """Delete what was uploaded and copied, README and block hashes; a leftover does no harm."""
        with suppress(Unreachable):
            uploaded = [self._keys.uploaded_readme, self._keys.uploaded_block_hashes]
            self._store.delete(self._bucket, uploaded)

    def _read_readme(self, key: str) -> str:
        content = self._store.read(self._bucket, key, limit_in_bytes=MAX_README_BYTES + 1)
        if len(content) > MAX_README_BYTES:
            raise UsageError(f"README.yml is larger than {MAX_README_BYTES} bytes", status=400)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise UsageError("README.yml is not UTF-8 text", status=400) from error

    def put_readme(self, readme: str) -> None:
        self._store.write(self._bucket, self._keys.readme, readme.encode())

    def update_readme(self, readme: str) -> None:
        """Replace the README and keep the one before as `README.yml-<timestamp>`.

        One that is the same already is left alone, so that a request that is
        sent twice does not keep the new one as an old one.
        """
        try:
            before = self._store.read(
                self._bucket, self._keys.readme, limit_in_bytes=MAX_README_BYTES + 1
            )
        except NotFound:
            self.put_readme(readme)
            return
        if before != readme.encode():
            backup = self._keys.readme_backup(repr(self._clock_s()))
            self._store.copy(self._bucket, self._keys.readme, backup)
            self.put_readme(readme)

    def tags(self) -> list[str]:
        return self._store.names(self._bucket, self._keys.tags)

    def set_tags(self, tags: Iterable[str]) -> None:
        """Make these the dataset's tags."""
        wanted, there = set(tags), set(self.tags())
        for tag in wanted - there:
            self.put_tag(tag)
        self._store.delete(self._bucket, (self._keys.tag(tag) for tag in there - wanted))

    def put_tag(self, tag: str) -> None:
        self._store.write(self._bucket, self._keys.tag(tag), b"")

    def delete_tag(self, tag: str) -> None:
        self._store.delete(self._bucket, [self._keys.tag(tag)])

    def annotations(self) -> dict[str, Any]:
        """Return the values of all annotations; one request each."""
        names = self._store.names(self._bucket, self._keys.annotations, ".json")
        return {name: self._read_json(self._keys.annotation(name)) for name in names}

    def put_annotation(self, name: str, value: Any) -> None:
        self._store.write(self._bucket, self._keys.annotation(name), json_text(value))

    def delete_annotation(self, name: str) -> None:
        self._store.delete(self._bucket, [self._keys.annotation(name)])

    def overlay_names(self) -> list[str]:
        return self._store.names(self._bucket, self._keys.overlays, ".json")

    def put_overlay(self, name: str, values: Mapping[str, Any]) -> None:
        self._store.write(self._bucket, self._keys.overlay(name), json_text(values))

    def delete_overlay(self, name: str) -> None:
        self._store.delete(self._bucket, [self._keys.overlay(name)])

    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = self._read_json(self._keys.manifest)
        if not _is_manifest(manifest):
            raise IntegrityError(f"{self._bucket}/{self._keys.manifest} is no manifest")
        return manifest

    def admin_metadata(self) -> dict[str, Any]:
        """Return the administrative metadata; raises NotFound if there is no dataset.

        From the metadata of its object, which is all that dtool-s3 0.14.1 reads.
        """
        key = self._keys.admin_metadata
        admin: dict[str, Any] = dict(self._store.metadata(self._bucket, key))
        for name in _DATES:
            if name in admin:
                try:
                    admin[name] = float(admin[name])
                except ValueError as error:
                    raise IntegrityError(f"{self._bucket}/{key}: {name} is no date") from error
        return admin

    def put_admin_metadata(self, admin: Mapping[str, Any]) -> None:
        self._store.write(
            self._bucket,
            self._keys.admin_metadata,
            json.dumps(admin).encode(),
            {name: str(value) for name, value in admin.items()},
        )

    def put_name(self, name: str) -> None:
        self.put_admin_metadata({**self.admin_metadata(), "name": name})

    def replace_all(
        self,
        *,
        overlays: Mapping[str, Mapping[str, Any]],
        annotations: Mapping[str, Any],
        tags: Iterable[str],
    ) -> None:
        """Write overlays, annotations and tags; remove those of an earlier attempt."""
        for name, overlay in overlays.items():
            self.put_overlay(name, overlay)
        for name, annotation in annotations.items():
            self.put_annotation(name, annotation)
        self.set_tags(tags)
        wanted = {
            *(self._keys.overlay(name) for name in overlays),
            *(self._keys.annotation(name) for name in annotations),
        }
        for prefix in (self._keys.overlays, self._keys.annotations):
            found = [stored.key for stored in self._store.iter_objects(self._bucket, prefix)]
            self._store.delete(self._bucket, (key for key in found if key not in wanted))

    def _read_json(self, key: str) -> Any:
        content = self._store.read(self._bucket, key, limit_in_bytes=_MAX_JSON_BYTES)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{self._bucket}/{key} is not JSON") from error


def _is_manifest(manifest: Any) -> bool:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("items"), dict):
        return False
    return all(
        isinstance(item, dict)
        and isinstance(item.get("relpath"), str)
        and isinstance(item.get("size_in_bytes"), int)
        for item in manifest["items"].values()
    )
