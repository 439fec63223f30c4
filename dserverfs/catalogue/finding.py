"""Finding datasets of one server: by its search where it has one, else in what it lists.

Used by the catalogue, for the tree and the command line. The server is asked each time; its
answers of before do not count while it is away, for "nothing" would not be true. What no
search answers is asked of each dataset that fits so far: annotations, tags and words where
there is no search, and hashes, for which its manifest is read: where it is kept, or as it comes.
Blocking and thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dserverfs.base.conditions import Conditions, Findings, Found, has_words
from dserverfs.base.errors import (
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    Unreachable,
)
from dserverfs.base.model import BackendURI, Dataset, DserverURI, User, is_below
from dserverfs.base.pools import each
from dserverfs.base.printable import listed
from dserverfs.catalogue.items import IndexedItems, relpaths_of_hashes
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.listings import SearchQuery

THREADS = 8
MAX_RELPATHS = 100  # that are told of one dataset and hash
AT_A_TIME = 1000  # datasets that wait for a thread

OnLookedInto = Callable[[int, int], None]  # how many datasets, of how many


def unwatched(done: int, total: int) -> None:
    """Ignore the progress."""


class Finder:
    """Finds datasets of one server."""

    def __init__(
        self,
        answers: KeptAnswers,
        user: Callable[[], User],
        kept_items: Callable[[Dataset], IndexedItems | None],
    ) -> None:
        """`user` asks the server who that is.

        `kept_items` returns a dataset's if its manifest is here, or raises NotLoaded.
        """
        self._answers = answers
        self._user = user
        self._kept_items = kept_items

    def find(
        self, uri: DserverURI, conditions: Conditions, on_looked_into: OnLookedInto = unwatched
    ) -> Findings:
        """Return the datasets at or below `uri` that fit, the newest first.

        Raises Unreachable, and PermissionDenied for a base URI that the user may not search.
        A dataset that cannot be looked into does not keep the others from being found.
        """
        if uri.uuid is not None:
            conditions = replace(conditions, uuids=(*conditions.uuids, uri.uuid))
        base_uris = self._base_uris(uri)
        candidates = [
            dataset
            for dataset in self._candidates(uri.base_uri, base_uris, conditions)
            if dataset.base_uri in base_uris and conditions.fit_listed(dataset)
        ]
        candidates.sort(key=lambda dataset: (dataset.frozen_at, dataset.uri), reverse=True)
        if not self._has_to_look(conditions):
            return Findings([Found(dataset) for dataset in candidates], [])
        return _each(candidates, lambda one: self._look_into(one, conditions), on_looked_into)

    def _base_uris(self, uri: DserverURI) -> frozenset[str]:
        """Return those at or below `uri` that the user may search."""
        user = self._user()
        found = frozenset(each for each in user.search_base_uris if is_below(each, uri.base_uri))
        if uri.base_uri is not None and not found:
            raise PermissionDenied(
                f"{uri}: user {user.username} has no search permission on {uri.base_uri}, or the"
                f" server does not have it; permitted: {listed(user.search_base_uris)}"
            )
        return found

    def _candidates(
        self, below: str | None, base_uris: frozenset[str], conditions: Conditions
    ) -> Iterable[Dataset]:
        """Return datasets, among them all that fit, by as few requests as there can be."""
        if self._is_searched_for(conditions):
            wanted = SearchQuery(
                () if below is None else tuple(sorted(base_uris)),
                conditions.tags,
                next(iter(conditions.creators), None),
            )
            return self._found_by_all(
                [wanted._replace(free_text=text) for text in conditions.texts] or [wanted]
            )
        if conditions.uuids:
            return self._answers.present_datasets_by_uuid(conditions.uuids[0])
        return itertools.chain.from_iterable(map(self._answers.present_datasets, sorted(base_uris)))

    def _is_searched_for(self, conditions: Conditions) -> bool:
        by_search = conditions.tags or conditions.creators or conditions.texts
        return bool(by_search) and self._answers.index().is_searched()

    def _found_by_all(self, queries: list[SearchQuery]) -> Iterator[Dataset]:
        """Yield what every one of several searches finds: a search has one free text."""
        index = self._answers.index()
        found = {dataset.uri: dataset for dataset in index.search(queries[0])}
        for query in queries[1:]:
            also: set[BackendURI] = {dataset.uri for dataset in index.search(query)}
            found = {uri: dataset for uri, dataset in found.items() if uri in also}
        yield from found.values()

    def _has_to_look(self, conditions: Conditions) -> bool:
        """Return whether each dataset has to be asked about."""
        if conditions.annotations or conditions.hashes:
            return True
        return bool(conditions.tags or conditions.texts) and not self._is_searched_for(conditions)

    def _look_into(self, dataset: Dataset, conditions: Conditions) -> Found | None:
        """Return the dataset if it is there, and all holds that has to be asked of itself."""
        try:
            return self._fitting(dataset, conditions)
        except NotFound:
            if self._answers.index().has(dataset):
                raise
            return None

    def _fitting(self, dataset: Dataset, conditions: Conditions) -> Found | None:
        """Return the dataset if it fits; the cheapest questions first."""
        index = self._answers.index()
        has_to_look = not self._is_searched_for(conditions)
        tags = functools.cache(lambda: index.tags(dataset))
        annotations = functools.cache(lambda: index.annotations(dataset))
        if has_to_look and conditions.tags and not set(conditions.tags) <= set(tags()):
            return None
        if not all(condition.holds(annotations()) for condition in conditions.annotations):
            return None
        if has_to_look and conditions.texts:
            # All that people gave it, but for the paths of its items.
            content = [
                *(dataset.name, dataset.uri, dataset.uuid, dataset.creator_username),
                index.readme(dataset).decode("utf-8", "replace"),
                json.dumps(annotations(), ensure_ascii=False),
                *tags(),
            ]
            if not all(has_words(text, content) for text in conditions.texts):
                return None
        by_hash = self._relpaths(dataset, conditions.hashes)
        if not all(by_hash.values()):
            return None
        return Found(dataset, tuple(itertools.chain.from_iterable(by_hash.values())))

    def _relpaths(self, dataset: Dataset, hashes: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Return the paths of items that have each hash."""
        if not hashes:
            return {}
        kept = loaded(lambda: self._kept_items(dataset))
        if kept is not None:
            return {hash: kept.relpaths_with_hash(hash, MAX_RELPATHS) for hash in hashes}
        # Not kept: those of all datasets would fill the disk, and most are asked for but once.
        with contextlib.closing(self._answers.manifest_pieces(dataset)) as pieces:
            return relpaths_of_hashes(pieces, hashes, MAX_RELPATHS)


def _each(
    datasets: list[Dataset], look_into: Callable[[Dataset], Found | None], told: OnLookedInto
) -> Findings:
    """Look into the datasets, several at a time."""

    def attempt(dataset: Dataset) -> Found | DserverfsError | None:
        try:
            return look_into(dataset)
        except NotAuthenticated:
            raise
        except DserverfsError as error:
            return error

    findings, away = Findings([], []), 0
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="find")
    try:
        for start in range(0, len(datasets), AT_A_TIME):
            some = datasets[start : start + AT_A_TIME]
            for place, outcome in enumerate(each(pool, attempt, some)):
                if isinstance(outcome, Found):
                    findings.found.append(outcome)
                elif outcome is not None:
                    away += isinstance(outcome, Unreachable)
                    if away >= THREADS:  # it is not about these datasets
                        raise outcome
                    findings.failed.append((some[place], outcome))
                told(start + place + 1, len(datasets))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return findings
