"""The known facts of a server's datasets: permissions, listings, names, manifests, metadata.

Used by the tree, the broker, the edits and the command line, which get the same answers,
also while the server is away. Owns how old an answer may be, and which dataset a URI
names. Answers at once or raises `refreshed.NotLoaded`, and fetches in threads; methods
that block say so. Thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dserverfs.base.clock import boottime_s
from dserverfs.base.conditions import Conditions, FoundAt
from dserverfs.base.errors import (
    DserverfsError,
    NotFound,
    PermissionDenied,
    ProtocolError,
    UsageError,
)
from dserverfs.base.items import ItemContent
from dserverfs.base.model import UUID, BackendURI, Dataset, DserverURI, User, is_below
from dserverfs.base.printable import listed
from dserverfs.catalogue.finding import Finder
from dserverfs.catalogue.items import IndexedItems, parse_manifest
from dserverfs.catalogue.manifest_index import ManifestIndex
from dserverfs.catalogue.manifest_indexing import pieces_of
from dserverfs.catalogue.manifests import Manifests
from dserverfs.catalogue.names import DatasetNames
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import (
    MOUNT,
    NotLoaded,
    RefreshedValue,
    RefreshWaits,
    Staleness,
    loaded,
)
from dserverfs.remote.api import Metadata
from dserverfs.remote.manifest_parsing import dtoolcore_version_in
from dserverfs.remote.signing import is_asked_whole

logger = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")

FRESH_S = 60.0  # listings, permissions, README, tags, annotations, overlay names
RENEW_S = 2.0  # a younger listing is not asked for again because a name is not in it
REFRESH_THREADS = 4
SEARCH_THREADS = 2
MAX_DATASETS = 10_000  # whose README and metadata are in memory: guess
UUID_DIRECTORY = ".uuid"
FIND_DIRECTORY = ".find"
OWN_DIRECTORY = ".dserverfs"


class Catalogue:
    """The datasets of one server."""

    def __init__(
        self,
        answers: KeptAnswers,
        server: str,
        directory: Path,
        clock_s: Callable[[], float] = boottime_s,
        staleness: Staleness = MOUNT,
        max_datasets: int = MAX_DATASETS,
    ) -> None:
        """`max_datasets` is how many READMEs, and how many datasets' metadata, are in memory."""
        self._answers = answers
        # Kept: the text of one, which each item's key begins with, is made once. To make it
        # anew took 3 of the 16 us in which an item is opened.
        self._uris = functools.lru_cache(MAX_DATASETS)(functools.partial(DserverURI, server))
        self._clock_s = clock_s
        self._background = ThreadPoolExecutor(REFRESH_THREADS, thread_name_prefix="refresh")
        # Apart: on a server without search, one search asks every dataset several questions.
        self._searching = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="search")
        self._waits = RefreshWaits(clock_s, staleness)
        self._max_datasets = max_datasets
        self._lock = threading.Lock()
        self._names: dict[str, DatasetNames] = {}
        self._resolved: dict[DserverURI, Dataset] = {}
        self._listings: dict[str, RefreshedValue[Mapping[str, Dataset]]] = {}
        self._readmes: OrderedDict[BackendURI, RefreshedValue[bytes]] = OrderedDict()
        self._metadata: OrderedDict[BackendURI, RefreshedValue[Metadata]] = OrderedDict()
        self._manifests = Manifests(answers, server, directory, explain=self._explained)
        self.finder = Finder(answers, self._present_user, self._kept_items)
        # Datasets registered by us, each with the time until which it is listed even if the
        # server's answer, which may be older, lacks it.
        self._learned: dict[BackendURI, tuple[Dataset, float]] = {}
        self._searches: weakref.WeakSet[RefreshedValue[tuple[FoundAt, ...]]] = weakref.WeakSet()
        self._user = self._refreshed(answers.user, lambda: _at_hand(answers.last_user()))

    def close(self) -> None:
        self._background.shutdown(wait=False, cancel_futures=True)
        self._searching.shutdown(wait=False, cancel_futures=True)
        self._manifests.close()

    # Answers that mounts keep and refresh

    def user(self) -> User:
        """Return the token's user, at once if that was ever known."""
        return self._user.get_at_once()

    def recent_user(self) -> User:
        """Return the token's user, with the base URIs of now or of a minute ago."""
        return self._user.get()

    def learn_user(self, user: User) -> None:
        """Take over an answer about the token's user that came just now."""
        self._user.keep(user)

    def datasets(self, base_uri: str, reserved: frozenset[str]) -> Mapping[str, Dataset]:
        """Return the datasets of a base URI by the name they are shown under.

        `reserved` names are left to others; those of the first call count.
        """
        with self._lock:
            listing = self._listings.get(base_uri)
            if listing is None:
                names = self._names.setdefault(
                    base_uri,
                    DatasetNames(reserved | {UUID_DIRECTORY, FIND_DIRECTORY, OWN_DIRECTORY}),
                )
                listing = self._listings[base_uri] = self._refreshed(
                    lambda: names.bind(self._with_learned(base_uri, self._answers.datasets)),
                    lambda: self._recalled_listing(base_uri, names),
                )
        return listing.get()

    def names(self, base_uri: str) -> DatasetNames:
        """Return the names bound in a base URI whose datasets were asked for."""
        return self._names[base_uri]

    def known_datasets(self) -> list[Dataset]:
        """Return the datasets of every listing that was fetched, without a request."""
        with self._lock:
            listings = list(self._listings.values())
        known: list[Dataset] = []
        for listing in listings:
            with contextlib.suppress(NotLoaded):
                known += listing.at_hand().values()
        return known

    def readme(self, dataset: Dataset) -> bytes:
        """Return the content of README.yml."""
        return self._of(self._readmes, dataset, self._answers.readme, self._answers.last_readme)

    def metadata(self, dataset: Dataset) -> Metadata:
        """Return admin metadata, tags, overlays and annotations."""
        answers = self._answers
        return self._of(self._metadata, dataset, answers.metadata, answers.last_metadata)

    # Changes

    def learn(self, dataset: Dataset, as_staged: UUID) -> None:
        """List a dataset that was registered just now, under the name it had while staged."""
        with self._lock:
            self._learned[dataset.uri] = (dataset, self._clock_s() + 2 * FRESH_S)
            self._resolved[self.uri_of(dataset)] = dataset
            listing = self._listings.get(dataset.base_uri)
            if as_staged != dataset.uuid and dataset.base_uri in self._names:
                self._names[dataset.base_uri].hand_over(as_staged, dataset.uuid)
        if listing is not None:
            listing.replace(lambda named: {**named, **self._named(dataset)})
        self._forget_searches()

    def relist(self, base_uri: str) -> None:
        """Drop a listing, which is fetched anew: another process made a dataset."""
        with self._lock:
            listing = self._listings.get(base_uri)
        if listing is not None:
            listing.forget()

    def fetch_listing(self, base_uri: str) -> None:
        """Fetch a listing that was asked for before anew; blocks. Raises what fetching raises."""
        with self._lock:
            listing = self._listings[base_uri]
        listing.renewed()

    def forget(self, dataset: Dataset) -> None:
        """Drop what can change of a dataset: its own user has changed it.

        README, tags, annotations, overlays and searches are loaded before they are shown
        again; the listing with its name is refreshed when it is next asked for.
        """
        self._answers.forget(dataset)
        with self._lock:
            self._resolved.pop(self.uri_of(dataset), None)
            self._readmes.pop(dataset.uri, None)
            self._metadata.pop(dataset.uri, None)
            listing = self._listings.get(dataset.base_uri)
        if listing is not None:
            listing.expire()
        self._forget_searches()

    # Renewals: each raises NotLoaded, and then waits shortly, if the answer is older than RENEW_S.

    def renew_user(self) -> None:
        """Renew the user's rights, and so the base URIs."""
        self._user.renew(RENEW_S)

    def renew_listing(self, base_uri: str) -> None:
        """Renew a listing, before a name is said not to be there."""
        self._renew(self._listings, base_uri)

    def renew_readme(self, dataset: Dataset) -> None:
        """Renew the README, before it is changed."""
        self._renew(self._readmes, dataset.uri)

    def renew_metadata(self, dataset: Dataset) -> None:
        """Renew tags, overlays and annotations, before one is changed or said not to be there."""
        self._renew(self._metadata, dataset.uri)

    # Manifests

    def manifest(self, dataset: Dataset) -> Path | bytes:
        """Return the manifest as the server sent it: a file, or its content."""
        return self._manifests.file(dataset)

    def parsed_manifest(self, dataset: Dataset) -> dict[str, Any]:
        """Return the manifest as dtool reads it; blocks.

        Raises IntegrityError for one that dtool must not use, and ProtocolError for one
        that cannot be read: it is fetched anew the next time.
        """
        kept = loaded(lambda: self.manifest(dataset))
        try:
            return parse_manifest(dataset, kept if isinstance(kept, bytes) else kept.read_bytes())
        except (OSError, ProtocolError) as error:
            self._manifests.drop_file(dataset)
            raise ProtocolError(
                f"{dataset.uri}: its manifest cannot be read ({error}); it will be fetched anew"
            ) from error

    def manifest_is_short(self, dataset: Dataset) -> bool:
        """Return whether fetching the manifest costs little more than fetching its beginning."""
        return is_asked_whole(dataset)

    def dtoolcore_version(self, dataset: Dataset) -> str | None:
        """Return the version of dtoolcore that the beginning of the manifest names; blocks."""
        with contextlib.suppress(NotLoaded):
            kept = self.manifest(dataset)
            return dtoolcore_version_in([kept] if isinstance(kept, bytes) else pieces_of(kept))
        return self._answers.dtoolcore_version(dataset)

    def index(self, dataset: Dataset) -> ManifestIndex:
        """Return the manifest as a tree; keep it no longer than one operation."""
        return self._manifests.index(dataset)

    def items(self, dataset: Dataset) -> IndexedItems:
        """Return the items of the manifest; keep it no longer than one operation."""
        return IndexedItems(dataset, self.uri_of(dataset), self._manifests.index(dataset))

    def uri_of(self, dataset: Dataset) -> DserverURI:
        """Return the URI that names the dataset among those of all servers."""
        return self._uris(dataset.base_uri, dataset.uuid)

    # URIs and datasets: the server is asked, and while it is away its last answer counts.
    # These methods block. They refuse an expired token, with which a running mount goes on
    # to show what its user saw before.

    def check(self, uri: DserverURI) -> Dataset | None:
        """Return the dataset that a URI names, None for a server or a base URI.

        Raises what keeps it from being read: no such host, no dserver, no signed-URL
        routes, a token that is refused, a base URI without permission, a dataset that is
        not there, or several of that uuid where the URI names no base URI.
        """
        self._answers.require_signed_urls()
        user = self._answers.accepted_user()
        self.learn_user(user)
        if uri.base_uri is None:
            if uri.uuid is None:
                return None
            found = self.base_uris_of(uri.uuid) & set(user.search_base_uris)
            uri = replace(uri, base_uri=only_base_uri(uri, found, f"user {user.username}"))
        elif not any(is_below(known, uri.base_uri) for known in user.search_base_uris):
            raise PermissionDenied(
                f"{uri}: user {user.username} has no search permission on {uri.base_uri},"
                f" or the server does not have it; permitted: {listed(user.search_base_uris)}"
            )
        if uri.uuid is None:
            return None
        try:
            return self.dataset(uri)
        except NotFound as error:
            raise NotFound(f"{uri}: no such dataset; a base URI shows all there are") from error

    def datasets_below(self, uri: DserverURI) -> list[Dataset]:
        """Return the dataset that a URI names, or all that a mount of it shows; as `check`."""
        only = self.check(uri)
        if only is not None:
            return [only]
        return [
            dataset
            for base_uri in self._user.at_hand().search_base_uris
            if is_below(base_uri, uri.base_uri)
            for dataset in self.listed(base_uri)
        ]

    def contents(self, dataset: Dataset) -> Iterator[tuple[str, ItemContent]]:
        """Yield every item with its relpath; raises what keeps the manifest from being read."""
        yield from loaded(lambda: self.items(dataset)).with_relpaths()

    def keep(self, dataset: Dataset) -> None:
        """Have all that is shown in a dataset kept for when the server is away; blocks."""
        for ask in (self.manifest, self.readme, self.metadata):
            loaded(functools.partial(ask, dataset))

    def dataset(self, uri: DserverURI) -> Dataset:
        """Return the dataset of a URI with base URI and uuid, which is asked for once.

        Raises NotFound, and PermissionDenied, which also means an unknown base URI.
        """
        assert uri.base_uri is not None
        assert uri.uuid is not None
        with self._lock:
            known = self._resolved.get(uri)
        return known or self._note([self._answers.dataset(uri.uuid, uri.base_uri)])[0]

    def listed(self, base_uri: str) -> list[Dataset]:
        """Return the datasets of a base URI, oldest first; raises PermissionDenied."""
        return self._note(self._answers.accepted_datasets(base_uri))

    def base_uris_of(self, uuid: UUID) -> set[str]:
        """Return the base URIs that hold a dataset of that uuid."""
        found = self._note(self._answers.accepted_datasets_by_uuid(uuid))
        return {dataset.base_uri for dataset in found}

    def search(
        self, uri: DserverURI, conditions: Conditions
    ) -> RefreshedValue[tuple[FoundAt, ...]]:
        """Return what `finder` finds at or below `uri`, the oldest first; the caller keeps it.

        Raises ProtocolError, when it is loaded, if one of the datasets cannot be looked into.
        """
        value = RefreshedValue(
            lambda: self._found(uri, conditions),
            FRESH_S,
            self._searching,
            self._clock_s,
            self._waits,
        )
        with self._lock:
            self._searches.add(value)
        return value

    def registering_user(self) -> User:
        """Return the token's user with the rights of now; raises Unreachable."""
        return self._answers.present_user()

    def _present_user(self) -> User:
        user = self._answers.present_user()
        self.learn_user(user)
        return user

    def _kept_items(self, dataset: Dataset) -> IndexedItems | None:
        """Return the items if the manifest is on this disk; raises NotLoaded."""
        return self.items(dataset) if self._manifests.is_kept(dataset) else None

    def _forget_searches(self) -> None:
        """Have all that was found searched for anew: one of the datasets is new, or another."""
        with self._lock:
            searches = list(self._searches)
        for search in searches:
            search.forget()

    def _found(self, uri: DserverURI, conditions: Conditions) -> tuple[FoundAt, ...]:
        findings = self.finder.find(uri, conditions)
        for dataset, error in findings.failed:
            raise ProtocolError(f"{dataset.uri}: cannot be looked into: {error}") from error
        oldest_first = [found.dataset for found in reversed(findings.found)]
        return tuple(FoundAt(dataset.base_uri, dataset.uuid) for dataset in oldest_first)

    def _note(self, datasets: list[Dataset]) -> list[Dataset]:
        with self._lock:
            self._resolved.update((self.uri_of(dataset), dataset) for dataset in datasets)
        return datasets

    def _recalled_listing(
        self, base_uri: str, names: DatasetNames
    ) -> Callable[[], Mapping[str, Dataset]] | None:
        """Return what binds names to the datasets of the last listing, if there was one."""
        if (kept := self._answers.last_datasets(base_uri)) is None:
            return None
        # Not before it is shown: a name that is bound stays bound.
        return lambda: names.bind(self._with_learned(base_uri, lambda _: kept))

    def _with_learned(self, base_uri: str, ask: Callable[[str], list[Dataset]]) -> list[Dataset]:
        listed = ask(base_uri)
        known = {dataset.uuid for dataset in listed}
        with self._lock:
            now = self._clock_s()
            self._learned = {uri: entry for uri, entry in self._learned.items() if entry[1] > now}
            learned = [dataset for dataset, _ in self._learned.values()]
        return listed + [
            dataset
            for dataset in learned
            if dataset.base_uri == base_uri and dataset.uuid not in known
        ]

    def _named(self, dataset: Dataset) -> dict[str, Dataset]:
        return self._names[dataset.base_uri].bind([dataset])

    def _refreshed(
        self,
        fetch: Callable[[], T],
        recall: Callable[[], Callable[[], T] | None] = lambda: None,
    ) -> RefreshedValue[T]:
        return RefreshedValue(fetch, FRESH_S, self._background, self._clock_s, self._waits, recall)

    def _of(
        self,
        values: OrderedDict[BackendURI, RefreshedValue[T]],
        dataset: Dataset,
        ask: Callable[[Dataset], T],
        last: Callable[[Dataset], T | None],
    ) -> T:
        with self._lock:
            value = values.get(dataset.uri)
            if value is None:
                value = values[dataset.uri] = self._refreshed(
                    lambda: self._asked(dataset, ask), lambda: _at_hand(last(dataset))
                )
                if len(values) > self._max_datasets:
                    values.popitem(last=False)
            else:
                values.move_to_end(dataset.uri)
        return value.get()

    def _renew(self, values: Mapping[K, RefreshedValue[T]], key: K) -> None:
        with self._lock:
            value = values.get(key)
        if value is not None:
            value.renew(RENEW_S)

    def _asked(self, dataset: Dataset, ask: Callable[[Dataset], T]) -> T:
        """Return what `ask` returns; blocks. Raises NotFound only if the dataset is not listed."""
        try:
            return ask(dataset)
        except NotFound as error:
            explained = self._explained(dataset, error)
            if explained is error:
                raise
            raise explained from error

    def _explained(self, dataset: Dataset, error: NotFound) -> DserverfsError:
        """Return what the server's "not found" about a dataset means; blocks.

        `error` itself if a listing fetched now lacks the dataset. A dataset that is listed
        and not found is not gone: the server is in trouble, and mirrors would delete the
        dataset if it was said to be gone. Raises the errors of the listing.
        """
        with self._lock:
            listing = self._listings.get(dataset.base_uri)
        if listing is None:
            listed = self._answers.datasets(dataset.base_uri)
        else:
            listed = list(listing.renewed().values())
        if any(other.uri == dataset.uri for other in listed):
            return ProtocolError(f"{error}; but it is listed", uri=dataset.uri, status=error.status)
        logger.info("%s: is gone: %s", dataset.uri, error)
        self._answers.drop(dataset)
        return error


def _at_hand(value: T | None) -> Callable[[], T] | None:
    """Return what gives a value, if there is one."""
    return None if value is None else lambda: value


def only_base_uri(uri: DserverURI, found: Collection[str], user: str) -> str:
    """Return the base URI of a dataset that `uri` names by its uuid alone, among those found.

    Raises NotFound, and UsageError if there are several: that one of them was used before
    does not make it the one that is meant.
    """
    if not found:
        raise NotFound(f"{uri}: no base URI that {user} may search has such a dataset")
    if len(found) > 1:
        full = sorted(str(replace(uri, base_uri=base_uri)) for base_uri in found)
        raise UsageError(f"{uri}: is in several base URIs; use one of {listed(full)}")
    return next(iter(found))
