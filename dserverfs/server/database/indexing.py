"""From one dataset in a bucket to its entries in the database.

The bucket is the truth; the database makes it quick to list and search.
"""

from __future__ import annotations

from typing import Any

import dservercore.utils
from dservercore import ValidationError

from dserverfs.base.errors import IntegrityError, NotFound
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.store.stores import Place

_REQUIRED = ("name", "creator_username", "frozen_at")


def read_dataset(place: Place, uri: str) -> dict[str, Any]:
    """Return the frozen dataset at `place` as dservercore registers one.

    Raises NotFound if there is none (a proto dataset is none), IntegrityError if
    its metadata are none that dtool writes, UsageError for a README that is not text.
    """
    metadata = StoredMetadata(place)
    admin = metadata.admin_metadata()
    if admin.get("type") == "protodataset":
        raise NotFound(f"{uri} is not frozen", uri=uri)
    missing = [name for name in _REQUIRED if name not in admin]
    if missing:
        raise IntegrityError(f"{uri}: its administrative metadata has no {missing[0]}", uri=uri)
    try:
        readme = metadata.readme()
    except NotFound:
        readme = ""
    return {
        "uuid": place.keys.uuid,
        "uri": uri,
        "base_uri": uri.rpartition("/")[0],
        "name": admin["name"],
        "type": "dataset",
        "creator_username": admin["creator_username"],
        "frozen_at": admin["frozen_at"],
        "created_at": admin.get("created_at", admin["frozen_at"]),
        "readme": readme,
        "manifest": metadata.manifest(),
        "annotations": metadata.annotations(),
        "tags": metadata.tags(),
    }


def register(dataset_info: dict[str, Any]) -> None:
    """Enter the dataset, in place of an earlier entry; commits. Needs an app context.

    Raises IntegrityError for one that no upload would let in.
    """
    items = dataset_info["manifest"]["items"].values()
    sizes = {
        "number_of_items": len(items),
        "size_in_bytes": sum(item.get("size_in_bytes", 0) for item in items),
    }
    try:
        dservercore.utils.register_dataset({**dataset_info, **sizes})
    except ValidationError as error:
        raise IntegrityError(str(error), uri=dataset_info["uri"]) from error
