"""One process' dealings with one dserver: the client, and answers already given.

dtoolcore makes three to eight brokers for a command, each of which asks what the
one before has asked; they share a session. It is made when the first of them
needs something, and closed when the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    UsageError,
)
from dserverfs.base.model import UUID, BackendURI, Dataset, DserverURI
from dserverfs.broker import proto
from dserverfs.broker.frozen import FrozenDataset
from dserverfs.broker.progress import watch
from dserverfs.broker.proto import ProtoDataset
from dserverfs.client import Client
from dserverfs.settings import Settings
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import State

# Each keeps its manifest as dtoolcore wants it, 800 bytes an item.
MAX_FROZEN = 8


class Session:
    """What brokers of one server share. Thread-safe."""

    def __init__(self, server: str, settings: Settings) -> None:
        self.settings = settings
        self._server = server
        self._lock = threading.RLock()
        self._client: Client | None = None
        self._datasets: dict[DserverURI, Dataset] = {}
        self._located: dict[UUID, str] = {}  # base URIs of what is asked for by uuid alone
        self._frozen: OrderedDict[BackendURI, FrozenDataset] = OrderedDict()
        self._protos: dict[Path, ProtoDataset] = {}  # by their directory

    @property
    def client(self) -> Client:
        """The client, opened when it is first needed."""
        with self._lock:
            if self._client is None:
                # What dtool's commands upload is elsewhere on this machine, as a rule.
                self._client = Client(self._server, self.settings, adopt=False).open()
            return self._client

    def close(self) -> None:
        with self._lock:
            datasets: list[FrozenDataset | ProtoDataset] = [*self._frozen.values()]
            datasets += self._protos.values()
            self._frozen.clear()
            self._protos.clear()
            client, self._client = self._client, None
        for dataset in datasets:
            dataset.close()
        if client is not None:
            client.close()

    def find(self, uri: DserverURI) -> FrozenDataset | ProtoDataset:
        """Return what a URI names: a proto dataset, else what the server has.

        Raises NotFound if there is none, PermissionDenied, UsageError if the URI
        leaves several to choose from.
        """
        uri = self._in_its_base_uri(uri)
        return self.staged(uri) or self.frozen(self._resolve(uri))

    def staged(self, uri: DserverURI) -> ProtoDataset | None:
        """Return the proto dataset that a URI names; asks nobody if it names the base URI.

        Raises as `find` if it does not.
        """
        if uri.uuid is None:
            return None
        found = self._staged_as(self._in_its_base_uri(uri))
        return None if found is None else self._proto(found)

    def listing(self, base_uri: str) -> list[UUID]:
        """Return the uuids of all datasets of a base URI, and then of the proto datasets.

        Raises PermissionDenied if the user may not look there.
        """
        staged = [each for each in self.client.staging.datasets(base_uri) if not _is_frozen(each)]
        try:
            datasets = self.client.resolver.datasets(base_uri)
        except NotAuthenticated:
            raise
        except PermissionDenied:
            if not staged:
                raise
            datasets = []  # whoever may only register there sees what is not sent yet
        self._note(datasets)
        known = {dataset.uuid: None for dataset in datasets}
        known |= {UUID(proto.uuid_of(each)): None for each in staged}
        return list(known)

    def require_creatable(self, uri: DserverURI) -> None:
        """Raise PermissionDenied or Conflict unless a new dataset can have this URI."""
        if uri.base_uri is None or uri.uuid is None:
            raise UsageError(f"{uri}: a new dataset needs a base URI and a uuid")
        user = self.client.resolver.user()
        if uri.base_uri not in user.register_base_uris:
            raise PermissionDenied(
                f"{DserverURI(self._server, uri.base_uri)}: user {user.username} has no right to"
                f" register datasets in {uri.base_uri}, or the server does not have it; permitted:"
                f" {', '.join(user.register_base_uris) or 'none'}"
            )
        with contextlib.suppress(NotFound):
            self.find(uri)
            raise Conflict(f"{uri}: exists already")

    def create(self, uri: DserverURI, admin_metadata: Mapping[str, Any]) -> None:
        """Make an empty proto dataset; raises UsageError, Conflict."""
        assert uri.base_uri is not None
        assert uri.uuid is not None
        staging = self.client.staging.open()
        with self._lock:
            self._located.pop(uri.uuid, None)
        self._proto(proto.create(staging, uri.base_uri, uri.uuid, admin_metadata))

    def finish(self, dataset: ProtoDataset) -> None:
        """Upload and register a proto dataset; blocks. Interrupted, it leaves it staged."""
        try:
            self._note([dataset.finish(watch)])
        except DserverfsError:
            raise
        except BaseException:
            self.close()  # ends the upload, which would go on in its thread
            raise

    def publish(self, uri: DserverURI) -> str:
        """Return a link to a dataset; it expires as dtool-s3's do where that is set."""
        expiry_s = self.settings.publish_expiry_s()
        return self.frozen(self._resolve(uri)).publish(expiry_s)

    def frozen(self, dataset: Dataset) -> FrozenDataset:
        """Return what there is to know and to do of a dataset."""
        with self._lock:
            frozen = self._frozen.get(dataset.uri)
            if frozen is None:
                frozen = self._frozen[dataset.uri] = FrozenDataset(
                    dataset,
                    self._server,
                    self.client,
                    self.settings.dtool_cache_directory(),
                    self._changed,
                )
                while len(self._frozen) > MAX_FROZEN:
                    self._frozen.popitem(last=False)[1].close()
            self._frozen.move_to_end(dataset.uri)
            return frozen

    def _changed(self, dataset: Dataset) -> None:
        """Ask anew about a dataset that was changed."""
        self.client.catalogue.forget(dataset)
        with self._lock:
            self._datasets.pop(self.client.uri_of(dataset), None)
            self._frozen.pop(dataset.uri, None)

    def _proto(self, staged: StagedDataset) -> ProtoDataset:
        with self._lock:
            found = self._protos.get(staged.directory)
            if found is None:
                found = self._protos[staged.directory] = ProtoDataset(staged, self.client)
            return found

    def _resolve(self, uri: DserverURI) -> Dataset:
        if uri.uuid is None:
            raise NotFound(f"{uri}: names no dataset")
        uri = self._in_its_base_uri(uri)
        with self._lock:
            known = self._datasets.get(uri)
        if known is not None:
            return known
        dataset = self.client.resolver.dataset(f"{uri.base_uri}/{uri.uuid}")
        self._note([dataset])
        return dataset

    def _note(self, datasets: Iterable[Dataset]) -> None:
        with self._lock:
            self._datasets.update((self.client.uri_of(dataset), dataset) for dataset in datasets)

    def _in_its_base_uri(self, uri: DserverURI) -> DserverURI:
        """Return the full URI of what is asked for by its uuid alone, staged or registered.

        Raises NotFound, or UsageError if it is in several base URIs: what is known of
        one of them so far does not decide which is meant.
        """
        if uri.uuid is None or uri.base_uri is not None:
            return uri
        with self._lock:
            base_uri = self._located.get(uri.uuid)
        if base_uri is None:
            base_uri = self._locate(uri, uri.uuid)
            with self._lock:
                self._located[uri.uuid] = base_uri
        return replace(uri, base_uri=base_uri)

    def _locate(self, uri: DserverURI, uuid: UUID) -> str:
        registered = self.client.resolver.datasets_by_uuid(uuid)
        self._note(registered)
        found = {dataset.base_uri for dataset in registered} | {
            base_uri
            for base_uri in self.client.staging.base_uris()
            if self._staged_as(replace(uri, base_uri=base_uri)) is not None
        }
        if not found:
            raise NotFound(f"{uri}: no base URI that you may search has such a dataset")
        if len(found) > 1:
            full = sorted(str(replace(uri, base_uri=base_uri)) for base_uri in found)
            raise UsageError(f"{uri}: is in several base URIs; use one of {' '.join(full)}")
        return found.pop()

    def _staged_as(self, uri: DserverURI) -> StagedDataset | None:
        """Return what is staged under a full URI."""
        assert uri.base_uri is not None
        for staged in self.client.staging.datasets(uri.base_uri):
            if not _is_frozen(staged) and proto.uuid_of(staged) == uri.uuid:
                return staged
        return None


def _is_frozen(staged: StagedDataset) -> bool:
    """Return whether the server has it: its files are only being put away."""
    return staged.frozen_as is not None or staged.record.state is State.FROZEN


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


# Before the threads of executors are waited for, which is before what atexit calls: what
# they are fetching ahead, or uploading after Ctrl-C, must not hold up the end.
getattr(threading, "_register_atexit", atexit.register)(close_all)
os.register_at_fork(after_in_child=_forget_after_fork)
