"""Changes of a frozen dataset's metadata: in the bucket and in the database, or known to differ.

A change is noted in the database as begun, made in the bucket, then made in the
database, where the note goes in the same transaction. The state after a stop half way:

    after the note         the database may be behind the bucket, and says so:
    after the bucket       `unsure` is set
    after the transaction  both have it

An unsure dataset is read anew from the bucket at the next start, and before the
next change of it. `number` counts changes, so that `serve index`, another
process, notices one that it has overtaken, and so does a change whose lock was lost.

A transaction that changes the note does so before it changes the dataset's rows: two that had
the other order would wait for each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dservercore.utils
from dservercore import UnknownURIError
from dservercore.extensions import sql_db
from dservercore.sql_models import Dataset
from flask import current_app
from sqlalchemy import Select, Update, select, update

from dserverfs.base.errors import Busy, DserverfsError, NotFound
from dserverfs.server.database import dialects, indexing, locks, sql
from dserverfs.server.database.retrieve import registered
from dserverfs.server.database.stored_metadata import StoredMetadata
from dserverfs.server.database.tables import change as change_table
from dserverfs.server.store.stores import Stores

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

        Raises NotFound if the dataset is not registered or not in the bucket, Busy if
        another change of it takes long, and the errors of `change`.
        """
        with locks.holding(locks.CHANGE, uri):
            before = _describe(uri)
            place = self._stores.place(uri)
            metadata = StoredMetadata(place)
            metadata.admin_metadata()  # what is registered by hand may be nowhere
            if _is_unsure(uri):
                _repair(self._stores, uri)
                before = _describe(uri)
            number = begin(uri)
            try:
                after = change(metadata, before)
                place.store.sync()
                _end_one(uri, number)
            except BaseException:
                repair_if_possible(self._stores, uri)
                raise
            _update(uri, after)
            sql_db.session.commit()
            return after


def repair_all(stores: Stores, store_answers: Callable[[str], bool]) -> None:
    """Read the datasets anew that an earlier run left unsure; before requests are answered.

    Those of a base URI whose store does not answer are left as they are, until they are changed
    or a server starts again; those that another server changes at the moment are left to it.
    """
    unsure = list(
        sql.execute(select(change_table.c.uri).where(change_table.c.unsure != 0)).scalars()
    )
    sql_db.session.rollback()  # nothing is held while others are waited for
    base_uris = {uri.rpartition("/")[0] for uri in unsure}
    answering = {base_uri for base_uri in base_uris if store_answers(base_uri)}
    for uri in unsure:
        if uri.rpartition("/")[0] not in answering:
            _log.warning("%s: what is listed may be older than what is stored", uri)
            continue
        with locks.holding_if_free(locks.CHANGE, uri) as is_held:
            if is_held and _is_unsure(uri):
                repair_if_possible(stores, uri)


def repair_if_possible(stores: Stores, uri: str) -> None:
    """Read a dataset anew; leave it unsure, and say so, if that cannot be done now.

    The caller holds its lock.
    """
    sql_db.session.rollback()
    try:
        _repair(stores, uri)
    except DserverfsError as error:
        sql_db.session.rollback()
        _log.warning("%s: what is listed may be older than what is stored: %s", uri, error)


def change_number(uri: str) -> int:
    """Return how many changes were begun or ended so far."""
    number: int | None = sql.value(_number_of(uri))
    return number or 0


def claim(uri: str, number: int) -> bool:
    """Return whether nothing has changed since `number`; nothing does until the commit then."""
    unchanged = {"uri": uri, "number": 0, "unsure": 0}
    sql.execute(dialects.upsert(sql.dialect_name(), change_table, unchanged, {}))
    return bool(sql.value(_number_of(uri).with_for_update()) == number)


def _number_of(uri: str) -> Select[tuple[int]]:
    return select(change_table.c.number).where(change_table.c.uri == uri)


def _repair(stores: Stores, uri: str) -> None:
    if not dservercore.utils.dataset_uri_exists(uri):  # deleted since
        _end(uri)
        sql_db.session.commit()
        return
    stores.forget(uri)
    dataset_info = indexing.read_dataset(stores.place(uri), uri)
    _end(uri)
    locks.hold_until_commit(locks.DATASET, uri)
    if dservercore.utils.dataset_uri_exists(uri):
        indexing.register(dataset_info)  # commits
    else:
        sql_db.session.commit()


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
    row = sql.first(change_table, change_table.c.uri == uri)
    return row is not None and bool(row.unsure)


def begin(uri: str) -> int:
    """Note a change as begun, and so the dataset as unsure; commits. Return its number."""
    first = {"uri": uri, "number": 1, "unsure": 1}
    another = {"number": change_table.c.number + 1, "unsure": 1}
    noted = dialects.upsert(sql.dialect_name(), change_table, first, another)
    number: int = sql.execute(noted.returning(change_table.c.number)).scalar_one()
    sql_db.session.commit()
    return number


def _end(uri: str) -> None:
    sql.execute(_ended().where(change_table.c.uri == uri))


def _end_one(uri: str, number: int) -> None:
    """End the change that has this number; raises Busy if there was another since."""
    is_last = (change_table.c.uri == uri, change_table.c.number == number)
    if sql.execute(_ended().where(*is_last)).rowcount != 1:
        raise Busy(f"{uri} was changed by another server at the same time; try again", uri=uri)


def _ended() -> Update:
    return update(change_table).values(number=change_table.c.number + 1, unsure=0)


def _update(uri: str, after: Description) -> None:
    tags = sorted(after.tags)
    registered().update_dataset(uri, readme=after.readme, annotations=after.annotations, tags=tags)
    search: Any = current_app.search  # type: ignore[attr-defined]
    search.update_dataset(
        uri, name=after.name, readme=after.readme, annotations=after.annotations, tags=tags
    )
    sql.execute(update(Dataset).where(Dataset.uri == uri).values(name=after.name))
