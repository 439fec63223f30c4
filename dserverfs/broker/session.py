"""One process' dealings with one dserver: the client, and answers already given.

dtoolcore makes three to eight brokers for a command, each of which asks what the
one before has asked; they share a session. It is made when the first of them
needs something, and closed when the process ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path

from dserverfs.broker.frozen import FrozenDataset
from dserverfs.client import Client
from dserverfs.errors import NotFound, PermissionDenied, UsageError
from dserverfs.model import UUID, Dataset, DserverURI
from dserverfs.settings import Settings

# Each keeps its manifest as dtoolcore wants it, 800 bytes an item.
MAX_FROZEN = 8


class Session:
    """What brokers of one server share. Thread-safe."""

    def __init__(self, server: str, settings: Settings) -> None:
        self.settings = settings
        self._server = server
        self._lock = threading.RLock()
        self._client: Client | None = None
        self._datasets: dict[str, Dataset] = {}  # by their backend's URI
        self._frozen: OrderedDict[str, FrozenDataset] = OrderedDict()

    @property
    def client(self) -> Client:
        """The client, opened when it is first needed."""
        with self._lock:
            if self._client is None:
                self._client = Client(self._server, self.settings).open()
            return self._client

    def close(self) -> None:
        with self._lock:
            for frozen in self._frozen.values():
                frozen.close()
            self._frozen.clear()
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def resolve(self, uri: DserverURI, uuid: UUID) -> Dataset:
        """Return the dataset that a URI with this uuid names.

        Raises NotFound if there is none, PermissionDenied, UsageError if the URI
        leaves several to choose from.
        """
        if uri.base_uri is None:
            return self._somewhere(uri, uuid)
        backend_uri = f"{uri.base_uri}/{uuid}"
        with self._lock:
            known = self._datasets.get(backend_uri)
        if known is not None:
            return known
        dataset = self.client.resolver.dataset(backend_uri)
        self._note([dataset])
        return dataset

    def listing(self, base_uri: str) -> list[Dataset]:
        """Return all datasets of a base URI; raises PermissionDenied if the user may not look."""
        datasets = self.client.resolver.datasets(base_uri)
        if not datasets:
            user = self.client.resolver.user()
            if base_uri not in user.search_base_uris:
                raise PermissionDenied(
                    f"{DserverURI(self._server, base_uri)}: user {user.username} has no search"
                    f" permission on {base_uri}, or the server does not have it; permitted:"
                    f" {', '.join(user.search_base_uris) or 'none'}"
                )
        self._note(datasets)
        return datasets

    def frozen(self, dataset: Dataset) -> FrozenDataset:
        """Return what there is to know and to do of a dataset."""
        with self._lock:
            frozen = self._frozen.get(dataset.uri)
            if frozen is None:
                frozen = self._frozen[dataset.uri] = FrozenDataset(
                    dataset, self._server, self.client, self.settings.dtool_cache_directory()
                )
                while len(self._frozen) > MAX_FROZEN:
                    self._frozen.popitem(last=False)[1].close()
            self._frozen.move_to_end(dataset.uri)
            return frozen

    def forget(self, dataset: Dataset) -> None:
        """Ask anew about a dataset that was changed."""
        with self._lock:
            self._datasets.pop(dataset.uri, None)
            frozen = self._frozen.pop(dataset.uri, None)
        if frozen is not None:
            frozen.close()

    def _note(self, datasets: list[Dataset]) -> None:
        with self._lock:
            self._datasets.update((dataset.uri, dataset) for dataset in datasets)

    def _somewhere(self, uri: DserverURI, uuid: UUID) -> Dataset:
        """Return the dataset of that uuid, whichever base URI holds it."""
        with self._lock:
            found = [known for known in self._datasets.values() if known.uuid == uuid]
        found = found or self.client.resolver.datasets_by_uuid(uuid)
        if not found:
            raise NotFound(f"{uri}: no base URI that you may search has such a dataset")
        if len(found) > 1:
            full = sorted(str(DserverURI(uri.server, each.base_uri, uuid)) for each in found)
            raise UsageError(f"{uri}: is in several base URIs; use one of {' '.join(full)}")
        self._note(found)
        return found[0]


_sessions: dict[tuple[str, Path | None], Session] = {}
_lock = threading.Lock()


def session_for(server: str, config_path: Path | None) -> Session:
    """Return this process' session with `server`; no I/O but for reading settings, once.

    `config_path` is a dtool.json other than the user's own.
    """
    with _lock:
        session = _sessions.get((server, config_path))
        if session is None:
            if not _sessions:
                _hide_signatures()
            settings = Settings.load(path=config_path)
            session = _sessions[server, config_path] = Session(server, settings)
        return session


def close_all() -> None:
    """End all sessions; brokers made later begin new ones."""
    with _lock:
        sessions = list(_sessions.values())
        _sessions.clear()
    for session in sessions:
        session.close()


def _forget_after_fork() -> None:
    """Leave a parent's connections, threads and locks to the parent."""
    global _lock
    _lock = threading.Lock()
    _sessions.clear()


class _WithoutQuery(logging.Filter):
    """Cuts the queries of URLs, which are secrets if they are signed, out of urllib3's log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                argument.partition("?")[0] + "?..."
                if isinstance(argument, str) and "?" in argument
                else argument
                for argument in record.args
            )
        return True


def _hide_signatures() -> None:
    """`dtool --debug` shows what every library logs."""
    logger = logging.getLogger("urllib3.connectionpool")
    if not any(isinstance(each, _WithoutQuery) for each in logger.filters):
        logger.addFilter(_WithoutQuery())


atexit.register(close_all)
os.register_at_fork(after_in_child=_forget_after_fork)
