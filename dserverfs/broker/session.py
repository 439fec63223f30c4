"""The state that all brokers of a process share for one server: its client, and open datasets.

dtoolcore makes three to eight brokers for a command, each of which asks what the one
before has asked. A session is made when the first of them needs the server, and closed
when the process ends.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
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
from dserverfs.base.model import UUID, BackendURI, DserverURI
from dserverfs.base.per_process import PerProcess
from dserverfs.base.printable import listed
from dserverfs.broker import proto
from dserverfs.broker.frozen import FrozenDataset
from dserverfs.broker.problems import needs_server
from dserverfs.broker.progress import watch
from dserverfs.broker.proto import ProtoDataset
from dserverfs.catalogue.catalogue import only_base_uri
from dserverfs.catalogue.refreshed import COMMAND
from dserverfs.client import Client
from dserverfs.settings import Settings
from dserverfs.writing.staging.dataset import StagedDataset
from dserverfs.writing.staging.states import State

# Each keeps its manifest as dtoolcore wants it, 800 bytes an item.
MAX_FROZEN = 8


class Session:
    """The client and the open datasets of one server. Thread-safe."""

    def __init__(self, server: str, settings: Settings) -> None:
        self._settings = settings
        self._server = server
        self._lock = threading.RLock()
        self._client: Client | None = None
        self._located: dict[UUID, str] = {}  # base URIs of what is asked for by uuid alone
        self._frozen: OrderedDict[BackendURI, FrozenDataset] = OrderedDict()
        self._protos: dict[Path, ProtoDataset] = {}  # by their directory

    @property
    def client(self) -> Client:
        """The client, opened when it is first needed."""
        with self._lock:
            if self._client is None:
                # The files that dtool's commands upload are on this machine, as a rule.
                client = Client(self._server, self._settings, adopt=False, staleness=COMMAND)
                self._client = client.open()
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
        """Return the proto dataset that a URI names, or else the dataset of the server.

        Raises NotFound if there is none, PermissionDenied, UsageError if the URI
        leaves several to choose from.
        """
        uri = self._in_its_base_uri(uri)
        return self.staged(uri) or self.frozen(uri)

    def staged(self, uri: DserverURI) -> ProtoDataset | None:
        """Return the proto dataset that a URI names; without a request if it has its base URI.

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
            datasets = self.client.catalogue.listed(base_uri)
        except NotAuthenticated:
            raise
        except PermissionDenied:
            if not staged:
                raise
            datasets = []  # a user who may only register there sees the proto datasets
        known = {dataset.uuid: None for dataset in datasets}
        known |= {UUID(proto.uuid_of(each)): None for each in staged}
        return list(known)

    def require_creatable(self, uri: DserverURI) -> None:
        """Raise PermissionDenied or Conflict unless a new dataset can have this URI."""
        if uri.base_uri is None or uri.uuid is None:
            raise UsageError(f"{uri}: a new dataset needs a base URI and a uuid")
        with needs_server(f"{uri}: no dataset can be created"):
            user = self.client.catalogue.registering_user()
        if uri.base_uri not in user.register_base_uris:
            raise PermissionDenied(
                f"{DserverURI(self._server, uri.base_uri)}: user {user.username} has no right to"
                f" register datasets in {uri.base_uri}, or the server does not have it; permitted:"
                f" {listed(user.register_base_uris)}"
            )
        with contextlib.suppress(NotFound):
            self.find(uri)
            raise Conflict(f"{uri}: exists already")

    def create(self, uri: DserverURI, admin_metadata: Mapping[str, Any]) -> None:
        """Make an empty proto dataset; raises UsageError, Conflict."""
        assert uri.base_uri is not None
        assert uri.uuid is not None
        self.client.note_staging_directory()
        staging = self.client.staging.open()
        with self._lock:
            self._located.pop(uri.uuid, None)
        self._proto(proto.create(staging, uri.base_uri, uri.uuid, admin_metadata))

    def finish(self, uri: DserverURI, dataset: ProtoDataset) -> None:
        """Upload and register a proto dataset; blocks. It stays staged if that fails."""
        try:
            with needs_server(f"{uri}: cannot be frozen, and stays a proto dataset,"):
                dataset.finish(watch)
        except DserverfsError:
            raise
        except BaseException:
            self.close()  # ends the upload, which would go on in its thread
            raise

    def publish(self, uri: DserverURI) -> str:
        """Return a link to a dataset; it expires as dtool-s3's do where that is set."""
        expiry_s = self._settings.publish_expiry_s()
        return self.frozen(self._in_its_base_uri(uri)).publish(expiry_s)

    def frozen(self, uri: DserverURI) -> FrozenDataset:
        """Return the dataset of the server that a full URI names; raises NotFound."""
        if uri.uuid is None:
            raise NotFound(f"{uri}: names no dataset")
        dataset = self.client.catalogue.dataset(uri)
        closed = []
        with self._lock:
            frozen = self._frozen.get(dataset.uri)
            if frozen is None or frozen.dataset != dataset:  # it has another name now
                closed += [frozen] if frozen else []
                directory = self._settings.dtool_cache_directory()
                frozen = self._frozen[dataset.uri] = FrozenDataset(dataset, self.client, directory)
            self._frozen.move_to_end(dataset.uri)
            while len(self._frozen) > MAX_FROZEN:
                closed.append(self._frozen.popitem(last=False)[1])
        for each in closed:
            each.close()
        return frozen

    def _proto(self, staged: StagedDataset) -> ProtoDataset:
        with self._lock:
            found = self._protos.get(staged.directory)
            if found is None:
                found = self._protos[staged.directory] = ProtoDataset(staged, self.client)
            return found

    def _in_its_base_uri(self, uri: DserverURI) -> DserverURI:
        """Return the full URI of a dataset that is named by its uuid alone, staged or registered.

        Raises NotFound, or UsageError if it is in several base URIs.
        """
        if uri.uuid is None or uri.base_uri is not None:
            return uri
        with self._lock:
            base_uri = self._located.get(uri.uuid)
        if base_uri is None:
            found = self.client.catalogue.base_uris_of(uri.uuid) | {
                base_uri
                for base_uri in self.client.staging.base_uris()
                if self._staged_as(replace(uri, base_uri=base_uri)) is not None
            }
            base_uri = only_base_uri(uri, found, "you")
            with self._lock:
                self._located[uri.uuid] = base_uri
        return replace(uri, base_uri=base_uri)

    def _staged_as(self, uri: DserverURI) -> StagedDataset | None:
        """Return the staged dataset of a full URI."""
        assert uri.base_uri is not None
        for staged in self.client.staging.datasets(uri.base_uri):
            if not _is_frozen(staged) and proto.uuid_of(staged) == uri.uuid:
                return staged
        return None


def _is_frozen(staged: StagedDataset) -> bool:
    """Return whether the server has it, and only its files are not removed yet."""
    return staged.frozen_as is not None or staged.record.state is State.FROZEN


def _new(key: tuple[str, Path | None]) -> Session:
    server, config_path = key
    return Session(server, Settings.load(path=config_path))


_sessions = PerProcess(_new)


def session_for(server: str, config_path: Path | None) -> Session:
    """Return this process' session with `server`; no I/O but for reading settings, once.

    `config_path` is a dtool.json other than the user's own.
    """
    return _sessions.get((server, config_path))
