"""The class dtoolcore asks: its names and conventions, over the session's answers.

A URI names a base URI, a dataset on the server, or a proto dataset in the local
staging area, which is found first, without a request. Nothing is asked in the
constructor. Every error of ours is raised so that a dtool command shows one line.

The keys of dtoolcore's primitive layer (`get_text`, `put_text`) are paths in
dtool's own layout on disk: `README.yml`, `.dtool/annotations/NAME.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dtoolcore.filehasher import FileHasher, md5sum_hexdigest
from dtoolcore.storagebroker import BaseStorageBroker, DiskStorageBroker
from dtoolcore.utils import DEFAULT_CONFIG_PATH

from dserverfs.broker.problems import all_in_one_line
from dserverfs.errors import NotFound, UsageError
from dserverfs.model import SCHEME, UUID, DserverURI

if TYPE_CHECKING:
    from dserverfs.broker.frozen import FrozenDataset
    from dserverfs.broker.session import Session

README = "README.yml"
ADMIN_METADATA = ".dtool/dtool"
MANIFEST = ".dtool/manifest.json"
STRUCTURE = ".dtool/structure.json"
DTOOL_README = ".dtool/README.txt"
OVERLAYS = ".dtool/overlays"
ANNOTATIONS = ".dtool/annotations"
TAGS = ".dtool/tags"


@all_in_one_line
class DserverStorageBroker(BaseStorageBroker):  # type: ignore[misc]  # dtoolcore has no types
    """Datasets of a dserver."""

    key: ClassVar[str] = SCHEME
    hasher = FileHasher(md5sum_hexdigest)
    _structure_parameters = DiskStorageBroker._structure_parameters
    _dtool_readme_txt = DiskStorageBroker._dtool_readme_txt

    def __init__(self, uri: str, config_path: str | None = None) -> None:
        """Raises UsageError if `uri` is not of the form of one."""
        self._uri = DserverURI.parse(uri)
        self._config_path = _other_config(config_path)

    # What a base URI holds.

    def list_dataset_uris(self, base_uri: str, config_path: str | None = None) -> list[str]:
        """Return the URIs of all datasets, oldest first, and of the user's proto datasets."""
        uri = DserverURI.parse(base_uri)
        if uri.base_uri is None:
            raise UsageError(
                f"{base_uri}: names no base URI; `dserverfs whoami {uri.server}` lists them"
            )
        datasets = self._session.listing(uri.base_uri)
        return [str(DserverURI(uri.server, uri.base_uri, each.uuid)) for each in datasets]

    @classmethod
    def generate_uri(cls, name: str, uuid: str, base_uri: str) -> str:
        uri = DserverURI.parse(base_uri)
        if uri.base_uri is None or uri.uuid is not None:
            raise UsageError(
                f"{base_uri}: is no base URI; expected dserver://HOST[:PORT]/s3/BUCKET"
            )
        return str(DserverURI(uri.server, uri.base_uri, UUID(uuid)))

    def generate_base_uri(self, uri: str) -> str:
        return str(uri).rstrip("/").rpartition("/")[0]

    # What a dataset is.

    def has_admin_metadata(self) -> bool:
        """Return whether there is such a dataset; whatever keeps us from knowing is raised."""
        if self._uri.uuid is None:
            return False
        try:
            self._session.resolve(self._uri, self._uri.uuid)
        except NotFound:
            return False
        return True

    def get_admin_metadata(self) -> dict[str, Any]:
        return self._frozen().admin_metadata()

    def get_manifest(self) -> dict[str, Any]:
        return self._frozen().manifest()

    # Keys and their texts.

    def get_admin_metadata_key(self) -> str:
        return ADMIN_METADATA

    def get_readme_key(self) -> str:
        return README

    def get_manifest_key(self) -> str:
        return MANIFEST

    def get_structure_key(self) -> str:
        return STRUCTURE

    def get_dtool_readme_key(self) -> str:
        return DTOOL_README

    def get_overlay_key(self, overlay_name: str) -> str:
        return f"{OVERLAYS}/{overlay_name}.json"

    def get_annotation_key(self, annotation_name: str) -> str:
        return f"{ANNOTATIONS}/{annotation_name}.json"

    def get_tag_key(self, tag: str) -> str:
        return f"{TAGS}/{tag}"

    def get_text(self, key: str) -> str:
        """Return the text at `key`; raises NotFound."""
        frozen = self._frozen()
        if key == README:
            return frozen.readme().decode("utf-8")
        if key == ADMIN_METADATA:
            return json.dumps(frozen.admin_metadata())
        if key == MANIFEST:
            return json.dumps(frozen.manifest(), indent=2, sort_keys=True)
        directory, _, name = key.rpartition("/")
        if directory in (OVERLAYS, ANNOTATIONS):
            kind = directory.removeprefix(".dtool/")
            return frozen.metadata.content(kind, name.removesuffix(".json")).decode("utf-8")
        if directory == TAGS and name in frozen.metadata.tags():
            return ""
        raise NotFound(f"{self._uri}: has no {key}")

    def put_text(self, key: str, text: str) -> None:
        """Change a dataset; raises Unsupported if its server cannot."""
        self._frozen().put_text(key, text)

    def delete_key(self, key: str) -> None:
        """Delete a tag or annotation; nothing happens if it is not there."""
        self._frozen().delete_key(key)

    def list_overlay_names(self) -> list[str]:
        return self._frozen().metadata.names("overlays")

    def list_annotation_names(self) -> list[str]:
        return self._frozen().metadata.names("annotations")

    def list_tags(self) -> list[str]:
        return self._frozen().metadata.tags()

    # Items.

    def get_item_abspath(self, identifier: str) -> str:
        """Return the path of a file with the item's verified content, fetching it if need be."""
        return str(self._frozen().item_path(identifier))

    def iter_item_handles(self) -> Iterator[str]:
        """Return the relpaths of the items; of a frozen dataset those that the store holds."""
        return iter(self._frozen().stored_relpaths())

    def get_size_in_bytes(self, handle: str) -> int:
        return self._frozen().stored_size(handle)

    def get_utc_timestamp(self, handle: str) -> float:
        return float(self._frozen().properties(handle)["utc_timestamp"])

    def get_hash(self, handle: str) -> str:
        """Return the hash of what is stored; a frozen dataset's item is read from the store."""
        return self._frozen().stored_digest(handle)

    # How the answers are found.

    @property
    def _session(self) -> Session:
        from dserverfs.broker.session import session_for

        return session_for(self._uri.server, self._config_path)

    def _frozen(self) -> FrozenDataset:
        if self._uri.uuid is None:
            raise NotFound(f"{self._uri}: names no dataset")
        return self._session.frozen(self._session.resolve(self._uri, self._uri.uuid))


def _other_config(config_path: str | None) -> Path | None:
    """Return a dtool.json that is not the user's own."""
    if config_path is None or str(config_path) == DEFAULT_CONFIG_PATH:
        return None
    return Path(config_path).absolute()
