"""The class that dtoolcore calls: its names and conventions, over the datasets of a session.

A URI names a base URI, a dataset on the server, or a proto dataset in the local
staging area, which is found first, without a request. The constructor makes no
request. Every error of ours is raised so that a dtool command shows one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dtoolcore.filehasher import FileHasher, md5sum_hexdigest
from dtoolcore.storagebroker import BaseStorageBroker, DiskStorageBroker
from dtoolcore.utils import DEFAULT_CONFIG_PATH, relpath_to_handle

from dserverfs.base import dtool_layout as keys
from dserverfs.base.errors import NotFound, Unsupported, UsageError
from dserverfs.base.model import SCHEME, UUID, DserverURI
from dserverfs.broker.problems import all_in_one_line, dataset_made

if TYPE_CHECKING:
    from dserverfs.broker.frozen import FrozenDataset
    from dserverfs.broker.proto import ProtoDataset
    from dserverfs.broker.session import Session


@all_in_one_line
class DserverStorageBroker(BaseStorageBroker):  # type: ignore[misc]  # dtoolcore has no types
    """Datasets of a dserver."""

    key: ClassVar[str] = SCHEME
    hasher = FileHasher(md5sum_hexdigest)
    # Of proto datasets, which lie on the local disk.
    _structure_parameters = DiskStorageBroker._structure_parameters
    _dtool_readme_txt = DiskStorageBroker._dtool_readme_txt

    def __init__(self, uri: str, config_path: str | None = None) -> None:
        """Raises UsageError if `uri` is not of the form of one."""
        self._uri = DserverURI.parse(uri)
        self._config_path = _other_config(config_path)
        self._is_being_created = False

    # Base URIs

    def list_dataset_uris(self, base_uri: str, config_path: str | None = None) -> list[str]:
        """Return the URIs of all datasets, oldest first, and then of the user's proto datasets."""
        uri = DserverURI.parse(base_uri)
        if uri.uuid is not None:  # dtool takes what is no dataset for a base URI
            raise NotFound(f"{uri}: no such dataset; dtool ls {replace(uri, uuid=None)} lists all")
        if uri.base_uri is None:
            raise UsageError(
                f"{base_uri}: names no base URI; `dserverfs whoami {uri.server}` lists them"
            )
        uuids = self._session.listing(uri.base_uri)
        return [str(DserverURI(uri.server, uri.base_uri, uuid)) for uuid in uuids]

    @classmethod
    def generate_uri(cls, name: str, uuid: str, base_uri: str) -> str:
        uri = DserverURI.parse(base_uri)
        if uri.base_uri is None or uri.uuid is not None:
            raise UsageError(
                f"{base_uri}: is no base URI; expected dserver://HOST[:PORT]/s3/BUCKET"
            )
        return str(DserverURI(uri.server, uri.base_uri, UUID(uuid)))

    def generate_base_uri(self, uri: str) -> str:
        return uri.rstrip("/").rpartition("/")[0]

    # Datasets

    def has_admin_metadata(self) -> bool:
        """Return whether there is such a dataset; raises what keeps us from knowing."""
        if self._uri.uuid is None:
            return False
        try:
            self._session.find(self._uri)
        except NotFound:
            return False
        return True

    def get_admin_metadata(self) -> dict[str, Any]:
        return self._dataset().admin_metadata()

    def put_admin_metadata(self, admin_metadata: Mapping[str, Any]) -> None:
        """Keep it; the first time after `create_structure` this makes the proto dataset."""
        if self._is_being_created:
            with dataset_made():
                self._session.create(self._uri, admin_metadata)
            self._is_being_created = False
            self._document_structure()
        self._dataset().put_admin_metadata(admin_metadata)

    def create_structure(self) -> None:
        """Check that the dataset can be made: it gets its place when it has a name."""
        with dataset_made():
            self._session.require_creatable(self._uri)
        self._is_being_created = True

    def get_manifest(self) -> dict[str, Any]:
        return self._dataset().manifest()

    def update_readme(self, content: str) -> None:
        """Replace a frozen dataset's README; the server keeps the one before."""
        self._dataset().put_text(keys.README, content)

    def _list_historical_readme_keys(self) -> list[str]:
        raise Unsupported(f"{self._uri}: earlier READMEs are kept in the store, not listed")

    # Keys and their texts

    def get_admin_metadata_key(self) -> str:
        return keys.ADMIN_METADATA

    def get_readme_key(self) -> str:
        return keys.README

    def get_manifest_key(self) -> str:
        return keys.MANIFEST

    def get_structure_key(self) -> str:
        return keys.STRUCTURE

    def get_dtool_readme_key(self) -> str:
        return keys.DTOOL_README

    def get_overlay_key(self, overlay_name: str) -> str:
        return f"{keys.OVERLAYS}/{overlay_name}.json"

    def get_annotation_key(self, annotation_name: str) -> str:
        return f"{keys.ANNOTATIONS}/{annotation_name}.json"

    def get_tag_key(self, tag: str) -> str:
        return f"{keys.TAGS}/{tag}"

    def get_text(self, key: str) -> str:
        """Return the text at `key`; raises NotFound."""
        return self._dataset().get_text(key)

    def put_text(self, key: str, text: str) -> None:
        """Change a dataset; raises Unsupported if its server cannot."""
        self._dataset().put_text(key, text)

    def delete_key(self, key: str) -> None:
        """Delete a tag or annotation; nothing happens if it is not there."""
        self._dataset().delete_key(key)

    def list_overlay_names(self) -> list[str]:
        return self._dataset().names("overlays")

    def list_annotation_names(self) -> list[str]:
        return self._dataset().names("annotations")

    def list_tags(self) -> list[str]:
        return self._dataset().tags()

    # Items

    def get_item_abspath(self, identifier: str) -> str:
        """Return the path of a file with the item's verified content, fetching it if need be."""
        return str(self._dataset().item_path(identifier))

    def put_item(self, fpath: str, relpath: str) -> str:
        """Copy a file into the staging area; return its handle."""
        handle: str = relpath_to_handle(relpath)
        self._proto("add an item").put_item(Path(fpath), handle)
        return handle

    def iter_item_handles(self) -> Iterator[str]:
        """Return the relpaths of all items, of a frozen dataset those that the store holds."""
        return iter(self._dataset().handles())

    def get_size_in_bytes(self, handle: str) -> int:
        return self._dataset().size(handle)

    def get_utc_timestamp(self, handle: str) -> float:
        return self._dataset().timestamp(handle)

    def get_hash(self, handle: str) -> str:
        """Return the hash of an item's content, which is read from the store if it is frozen."""
        return self._dataset().hash(handle)

    def add_item_metadata(self, handle: str, key: str, value: Any) -> None:
        self._proto("add metadata to an item").add_item_metadata(handle, key, value)

    def get_item_metadata(self, handle: str) -> dict[str, Any]:
        return self._proto("look for an item's metadata").item_metadata(handle)

    # Freezing

    def pre_freeze_hook(self) -> None:
        self._proto("freeze").prepare()

    def post_freeze_hook(self) -> None:
        """Upload and register what dtoolcore has described; return when that is done."""
        self._session.finish(self._uri, self._proto("freeze"))

    # Publishing

    def http_enable(self) -> str:
        """Return a link by which anybody can read the dataset for a while."""
        return self._session.publish(self._uri)

    # Sessions and datasets

    @property
    def _session(self) -> Session:
        from dserverfs.broker.session import session_for

        return session_for(self._uri.server, self._config_path)

    def _dataset(self) -> FrozenDataset | ProtoDataset:
        return self._session.find(self._uri)

    def _proto(self, what: str) -> ProtoDataset:
        proto = self._session.staged(self._uri)
        if proto is None:
            self._session.find(self._uri)
            raise UsageError(f"{self._uri}: is frozen; it is too late to {what}")
        return proto


def _other_config(config_path: str | None) -> Path | None:
    """Return a dtool.json that is not the user's own."""
    if config_path is None or str(config_path) == DEFAULT_CONFIG_PATH:
        return None
    return Path(config_path).absolute()
