"""Changes of a frozen dataset's metadata: in the bucket and in the database, or known to differ.

A change is noted in the database as begun, made in the bucket, then made in the
database, where the note goes in the same transaction. The state after a stop half way:

    after the note         the database may be behind the bucket, and says so:
    after the bucket       `unsure` is set
    after the transaction  both have it

An unsure dataset is read anew from the bucket at the next start, and before the
next change of it. `number` counts changes, so that `serve index`, another
process, notices one that it has overtaken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dservercore.utils
from dservercore import UnknownURIError
from dservercore.extensions import sql_db
from flask import current_app

from dserverfs.base.errors import Busy, DserverfsError, NotFound
from dserverfs.server.database import indexing, locks, sql
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.store.stores import Stores

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS dserverfs_change (
        uri TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        unsure INTEGER NOT NULL
    )""",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """The changeable metadata of a dataset, as the database has them."""

    name: str
    readme: str
    annotations: Mapping[str, Any]
    tags: list[str]


Change = Callable[[StoredMetadata, Description], Description]


class Changes:
    """Makes changes, one at a time for each dataset; needs an app context."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def make(self, uri: str, change: Change) -> Description:
        """Let `change` alter the bucket and return the new description; keep that.

        Raises NotFound if the dataset is not registered or not in the bucket,
        and the errors of `change`.
        """
        with locks.holding(locks.CHANGE, uri):
            before = _describe(uri)
            place = self._stores.place(uri)
            metadata = StoredMetadata(place)
            metadata.admin_metadata()  # what is registered by hand may be nowhere
            if _is_unsure(uri):
                _repair(self._stores, uri)
                before = _describe(uri)
            begin(uri)
            try:
                after = change(metadata, before)
                place.store.sync()
            except BaseException:
                repair_if_possible(self._stores, uri)
                raise
            _update(uri, after)
            _end(uri)
            sql_db.session.commit()
            return after


def repair_all(stores: Stores, store_answers: Callable[[str], bool]) -> None:
    """Read the datasets anew that an earlier run left unsure; before requests are answered.

    Those of a base URI whose store does not answer are left as they are, until they are changed
    or a server starts again; so is what another process is changing now, to that process.
    """
    unsure = list(sql.execute("SELECT uri FROM dserverfs_change WHERE unsure").scalars())
    sql_db.session.rollback()  # nothing is held while others are waited for
    base_uris = {uri.rpartition("/")[0] for uri in unsure}
    answering = {base_uri for base_uri in base_uris if store_answers(base_uri)}
    for uri in unsure:
        if uri.rpartition("/")[0] not in answering:
            _log.warning("%s: what is listed may be older than what is stored", uri)
            continue
        try:
            with locks.holding(locks.CHANGE, uri, wait_s=0.0):
                if _is_unsure(uri):
                    repair_if_possible(stores, uri)
        except Busy:
            continue


def repair_if_possible(stores: Stores, uri: str) -> None:
    """Read a dataset anew; leave it unsure, and say so, if that cannot be done now."""
    sql_db.session.rollback()
    try:
        _repair(stores, uri)
    except DserverfsError as error:
        sql_db.session.rollback()
        _log.warning("%s: what is listed may be older than what is stored: %s", uri, error)


def change_number(uri: str) -> int:
    """Return how many changes were begun or ended so far."""
    statement = "SELECT number FROM dserverfs_change WHERE uri = :uri"
    number: int | None = sql.value(statement, uri=uri)
    return number or 0


def claim(uri: str, number: int) -> bool:
    """Return whether nothing has changed since `number`; nothing does until the commit then."""
    sql.execute(
        "INSERT OR IGNORE INTO dserverfs_change (uri, number, unsure) VALUES (:uri, 0, 0)", uri=uri
    )
    return change_number(uri) == number


def _repair(stores: Stores, uri: str) -> None:
    if not dservercore.utils.dataset_uri_exists(uri):  # deleted since
        _end(uri)
        sql_db.session.commit()
        return
    stores.forget(uri)
    dataset_info = indexing.read_dataset(stores.place(uri), uri)
    _end(uri)
    indexing.register(dataset_info)  # commits


def _describe(uri: str) -> Description:
    dataset = dservercore.utils.get_admin_metadata_from_uri(uri)
    if dataset is None:
        raise NotFound(f"{uri} is not registered", uri=uri)
    try:
        return Description(
            name=dataset["name"],
            readme=registered().get_readme_text(uri),
            annotations=registered().get_annotations(uri),
            tags=registered().get_tags(uri),
        )
    except UnknownURIError as error:
        raise NotFound(f"{uri} is not registered", uri=uri) from error


def _is_unsure(uri: str) -> bool:
    return bool(sql.value("SELECT unsure FROM dserverfs_change WHERE uri = :uri", uri=uri))


def begin(uri: str) -> None:
    """Note a change as begun, and so the dataset as unsure; commits."""
    sql.execute(
        "INSERT INTO dserverfs_change (uri, number, unsure) VALUES (:uri, 1, 1)"
        " ON CONFLICT (uri) DO UPDATE SET number = number + 1, unsure = 1",
        uri=uri,
    )
    sql_db.session.commit()


def _end(uri: str) -> None:
    sql.execute(
        "UPDATE dserverfs_change SET number = number + 1, unsure = 0 WHERE uri = :uri", uri=uri
    )


def _update(uri: str, after: Description) -> None:
    tags = sorted(after.tags)
    registered().update_dataset(uri, readme=after.readme, annotations=after.annotations, tags=tags)
    search: Any = current_app.search  # type: ignore[attr-defined]
    search.update_dataset(
        uri, name=after.name, readme=after.readme, annotations=after.annotations, tags=tags
    )
    sql.execute("UPDATE dataset SET name = :name WHERE uri = :uri", name=after.name, uri=uri)
