"""Registers the datasets that dtool-s3 has put into a bucket.

Runs in a process of its own, maybe beside the server. A dataset that the server
changes in the meantime is read once more, see `changes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import dservercore.utils
from dservercore.extensions import sql_db
from dservercore.sql_models import Dataset

from dserverfs.base.errors import Conflict, DserverfsError, NotFound
from dserverfs.base.limits import is_uuid
from dserverfs.base.progress import OnProgress, Progress, unwatched
from dserverfs.server.database import changes, indexing, stored_block_hashes
from dserverfs.server.store.layout import REGISTRATION_PREFIX
from dserverfs.server.store.signing import bucket_of
from dserverfs.server.store.stores import Stores

_THREADS = 8
_AHEAD = 32  # datasets read and not yet registered; a manifest each
_ATTEMPTS = 5


class Indexed(NamedTuple):
    registered: int
    left_out: list[str]  # why, one line each
    missing: list[str]  # registered URIs that are not in the bucket


class _Reading(NamedTuple):
    uri: str
    number: int  # of changes, before it was read
    dataset_info: Future[dict[str, Any]]


def index(stores: Stores, base_uri: str, on_progress: OnProgress = unwatched) -> Indexed:
    """Register every frozen dataset of a bucket; read those anew that are registered.

    Needs an app context. Proto datasets are passed over; a dataset that cannot
    be read is left out, with the reason.
    """
    registered, left_out = 0, []
    seen: set[str] = set()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        uris = list(_uris(stores, base_uri))
        for reading in _readings(stores, iter(uris), pool):
            on_progress(Progress(0, 0, len(seen), len(uris)))
            seen.add(reading.uri)
            try:
                _register(stores, reading)
                registered += 1
            except NotFound:
                continue  # not frozen
            except DserverfsError as error:
                left_out.append(f"{reading.uri}: {error}")
            finally:
                sql_db.session.rollback()
    base = dservercore.utils.get_base_uri_obj(base_uri)
    known = Dataset.query.filter_by(base_uri_id=base.id).order_by(Dataset.uri)
    missing = [dataset.uri for dataset in known if dataset.uri not in seen]
    return Indexed(registered, left_out, missing)


def _readings(stores: Stores, uris: Iterator[str], pool: ThreadPoolExecutor) -> Iterator[_Reading]:
    """Yield the datasets that are being read, a few of them ahead."""
    begun = [_begin(stores, uri, pool) for uri in islice(uris, _AHEAD)]
    while begun:
        yield begun.pop(0)
        begun.extend(_begin(stores, uri, pool) for uri in islice(uris, 1))


def _uris(stores: Stores, base_uri: str) -> Iterator[str]:
    for stored in stores.of(base_uri).iter_objects(bucket_of(base_uri), REGISTRATION_PREFIX):
        uuid = stored.key.removeprefix(REGISTRATION_PREFIX)
        if is_uuid(uuid):
            yield f"{base_uri}/{uuid}"


def _begin(stores: Stores, uri: str, pool: ThreadPoolExecutor) -> _Reading:
    number = changes.change_number(uri)
    return _Reading(uri, number, pool.submit(_read, stores, uri))


def _read(stores: Stores, uri: str) -> dict[str, Any]:
    return indexing.read_dataset(stores.place(uri), uri)


def _register(stores: Stores, reading: _Reading) -> None:
    dataset_info, number = reading.dataset_info.result(), reading.number
    for _ in range(_ATTEMPTS):
        place = stores.place(reading.uri)
        place.store.sync()  # as `completing.freeze` does
        if changes.claim(reading.uri, number):
            digest = stored_block_hashes.of_manifest(dataset_info["manifest"])
            has_hashes = digest.number_of_hashes > 0 and stored_block_hashes.is_right(place, digest)
            stored_block_hashes.note(reading.uri, is_stored=has_hashes)
            indexing.register(dataset_info)  # commits
            return
        sql_db.session.rollback()
        number = changes.change_number(reading.uri)
        dataset_info = _read(stores, reading.uri)
    raise Conflict("is being changed all the time; try again")
