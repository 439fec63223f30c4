"""What is known of a server's datasets: permissions, listings, names, manifests, metadata.

Used by the tree. Owns how long each is believed, and under which name a dataset
is shown. Answers at once or raises `cells.NotLoaded`; asks in threads. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dserverfs.base.clock import boottime_s
from dserverfs.base.errors import DserverfsError, NotFound, ProtocolError
from dserverfs.base.limits import component_is_usable
from dserverfs.base.model import UUID, BackendURI, Dataset, User
from dserverfs.catalogue.manifest_index import ManifestIndex
from dserverfs.catalogue.manifests import Manifests
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import Cell, NotLoaded, Patience
from dserverfs.remote.api import Metadata

logger = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_S = 60.0  # listings, permissions, README, tags, annotations, overlay names
RENEW_S = 2.0  # what is younger is not asked for again by who looks for a name in vain
REFRESH_THREADS = 4
UUID_DIRECTORY = ".uuid"


class Names:
    """Under which name each dataset of a base URI is shown; a name once bound stays bound."""

    def __init__(self, reserved: frozenset[str]) -> None:
        self._taken: dict[str, UUID | None] = {name: None for name in reserved}
        self._names: dict[UUID, str] = {}

    def bind(self, datasets: list[Dataset]) -> dict[str, Dataset]:
        """Return the datasets, oldest first, by name; earlier bindings are kept."""
        named = {}
        for dataset in sorted(datasets, key=lambda entry: (entry.frozen_at, entry.uuid)):
            name = self._names.get(dataset.uuid)
            if name is None:
                name = self._names[dataset.uuid] = self._choose(dataset)
                self._taken[name] = dataset.uuid
            named[name] = dataset
        return named

    def place(self, uuid: UUID, wanted: str) -> str:
        """Return the name of a staged dataset: `wanted`, if nothing else has that."""
        name = self._names.get(uuid)
        if name is None or (name != wanted and wanted not in self._taken):
            self.release(uuid)
            name = self._names[uuid] = self._free(wanted, uuid)
            self._taken[name] = uuid
        return name

    def hand_over(self, staged: UUID, frozen: UUID) -> None:
        """Show the frozen dataset under the name that it had while it was staged."""
        if staged == frozen:
            return
        name = self._names.pop(staged, None)
        if name is not None and frozen not in self._names:
            self._names[frozen] = name
            self._taken[name] = frozen

    def is_taken(self, name: str) -> bool:
        return name in self._taken

    def release(self, uuid: UUID) -> None:
        """Let others have the name of a staged dataset."""
        name = self._names.pop(uuid, None)
        if name is not None:
            del self._taken[name]

    def _choose(self, dataset: Dataset) -> str:
        if not component_is_usable(dataset.name):
            logger.warning("%s: its name cannot be shown, its uuid is", dataset.uri)
            return dataset.uuid
        return self._free(dataset.name, dataset.uuid)

    def _free(self, wanted: str, uuid: UUID) -> str:
        for name in (wanted, f"{wanted}~{uuid[:8]}"):
            if name not in self._taken:
                return name
        return f"{wanted}~{uuid}"


class Catalogue:
    """Everything known of one server."""

    def __init__(
        self,
        answers: KeptAnswers,
        server: str,
        directory: Path,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        self._answers = answers
        self._clock_s = clock_s
        self._background = ThreadPoolExecutor(REFRESH_THREADS, thread_name_prefix="refresh")
        self._patience = Patience(clock_s)
        self._lock = threading.Lock()
        self._names: dict[str, Names] = {}
        self._listings: dict[str, Cell[Mapping[str, Dataset]]] = {}
        self._readmes: dict[BackendURI, Cell[bytes]] = {}
        self._metadata: dict[BackendURI, Cell[Metadata]] = {}
        self._manifests = Manifests(answers, server, directory, explain=self._explained)
        # Registered by us, and until when they are listed even if the server's answer,
        # which may be older, does not have them.
        self._learned: dict[BackendURI, tuple[Dataset, float]] = {}
        self._user = self._cell(answers.user, FRESH_S)

    def close(self) -> None:
        self._background.shutdown(wait=False, cancel_futures=True)
        self._manifests.close()

    def user(self) -> User:
        """Return whom the token speaks for, at once if that was ever known."""
        return self._user.get_at_once()

    def recent_user(self) -> User:
        """Return whom the token speaks for, with the base URIs of now or of a minute ago."""
        return self._user.get()

    def learn_user(self, user: User) -> None:
        """Take over whom the token speaks for from an answer that was just had."""
        self._user.keep(user)

    def datasets(self, base_uri: str, reserved: frozenset[str]) -> Mapping[str, Dataset]:
        """Return the datasets of a base URI by the name they are shown under.

        `reserved` names are left to others; those of the first call count.
        """
        with self._lock:
            cell = self._listings.get(base_uri)
            if cell is None:
                names = self._names.setdefault(base_uri, Names(reserved | {UUID_DIRECTORY}))
                cell = self._listings[base_uri] = self._cell(
                    lambda: names.bind(self._with_learned(base_uri)), FRESH_S
                )
        return cell.get()

    def names(self, base_uri: str) -> Names:
        """Return the names bound in a base URI whose datasets were asked for."""
        return self._names[base_uri]

    def learn(self, dataset: Dataset, as_staged: UUID) -> None:
        """List a dataset that was registered just now, under the name it had while staged."""
        with self._lock:
            self._learned[dataset.uri] = (dataset, self._clock_s() + 2 * FRESH_S)
            cell = self._listings.get(dataset.base_uri)
            if as_staged != dataset.uuid and dataset.base_uri in self._names:
                self._names[dataset.base_uri].hand_over(as_staged, dataset.uuid)
        if cell is not None:
            cell.replace(lambda named: {**named, **self._named(dataset)})

    def relist(self, base_uri: str) -> None:
        """Have the listing fetched anew: another process made a dataset."""
        with self._lock:
            cell = self._listings.get(base_uri)
        if cell is not None:
            cell.forget()

    def known_datasets(self) -> list[Dataset]:
        """Return the datasets of every listing that is at hand; asks for nothing."""
        with self._lock:
            cells = list(self._listings.values())
        known: list[Dataset] = []
        for cell in cells:
            try:
                known += cell.at_hand().values()
            except NotLoaded:
                continue
        return known

    def readme(self, dataset: Dataset) -> bytes:
        """Return the content of README.yml."""
        return self._of(self._readmes, dataset, self._answers.readme, FRESH_S)

    def metadata(self, dataset: Dataset) -> Metadata:
        """Return admin metadata, tags, overlays and annotations."""
        return self._of(self._metadata, dataset, self._answers.metadata, FRESH_S)

    # Each raises NotLoaded, and then waits shortly, if what is known is older than RENEW_S.

    def renew_user(self) -> None:
        """Have the user's rights, and so the base URIs, of now."""
        self._user.renew(RENEW_S)

    def renew_listing(self, base_uri: str) -> None:
        """Have the datasets of now, before a name is said not to be there."""
        with self._lock:
            cell = self._listings.get(base_uri)
        if cell is not None:
            cell.renew(RENEW_S)

    def renew_readme(self, dataset: Dataset) -> None:
        """Have the README of now, before it is changed."""
        with self._lock:
            cell = self._readmes.get(dataset.uri)
        if cell is not None:
            cell.renew(RENEW_S)

    def renew_metadata(self, dataset: Dataset) -> None:
        """Have tags, overlays and annotations of now, before one is changed or not there."""
        with self._lock:
            cell = self._metadata.get(dataset.uri)
        if cell is not None:
            cell.renew(RENEW_S)

    def forget(self, dataset: Dataset) -> None:
        """Ask anew for what can change of a dataset: it was changed by its own user.

        README, tags, annotations and overlays are loaded before they are shown
        again; the listing with its name is refreshed when it is next asked for.
        """
        self._answers.forget(dataset)
        with self._lock:
            self._readmes.pop(dataset.uri, None)
            self._metadata.pop(dataset.uri, None)
            listing = self._listings.get(dataset.base_uri)
        if listing is not None:
            listing.expire()

    def manifest(self, dataset: Dataset) -> Path | bytes:
        """Return the manifest as the server sent it: a file, or what would be in it."""
        return self._manifests.file(dataset)

    def drop_manifest(self, dataset: Dataset) -> None:
        """Have what `manifest` returns fetched anew: it turned out not to be one."""
        self._manifests.drop_file(dataset)

    def index(self, dataset: Dataset) -> ManifestIndex:
        """Return the manifest as a tree; keep it no longer than one operation."""
        return self._manifests.index(dataset)

    def _with_learned(self, base_uri: str) -> list[Dataset]:
        listed = self._answers.datasets(base_uri)
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

    def _cell(self, fetch: Callable[[], T], max_age_s: float) -> Cell[T]:
        return Cell(fetch, max_age_s, self._background, self._clock_s, self._patience)

    def _of(
        self,
        cells: dict[BackendURI, Cell[T]],
        dataset: Dataset,
        ask: Callable[[Dataset], T],
        max_age_s: float,
    ) -> T:
        with self._lock:
            cell = cells.get(dataset.uri)
            if cell is None:
                cell = cells[dataset.uri] = self._cell(lambda: self._asked(dataset, ask), max_age_s)
        return cell.get()

    def _asked(self, dataset: Dataset, ask: Callable[[Dataset], T]) -> T:
        """Return what `ask` returns; blocks. Raises NotFound for what is listed no more only."""
        try:
            return ask(dataset)
        except NotFound as error:
            explained = self._explained(dataset, error)
            if explained is error:
                raise
            raise explained from error

    def _explained(self, dataset: Dataset, error: NotFound) -> DserverfsError:
        """Return what the server's "not found" about a dataset means; blocks.

        `error` itself if a listing asked for now lacks the dataset. What is listed and
        not there is no dataset that is gone, but a server in trouble: told as gone, it
        would be deleted from every mirror. Raises what asking for the listing raises.
        """
        with self._lock:
            cell = self._listings.get(dataset.base_uri)
        if cell is None:
            listed = self._answers.datasets(dataset.base_uri)
        else:
            listed = list(cell.renewed().values())
        if any(other.uri == dataset.uri for other in listed):
            return ProtocolError(f"{error}; but it is listed", uri=dataset.uri, status=error.status)
        logger.info("%s: is gone: %s", dataset.uri, error)
        self._answers.forget(dataset)
        return error
