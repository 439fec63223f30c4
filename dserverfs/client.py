"""The composition root: everything that reading datasets of one server needs, put together.

The only reader of settings. The mount, and whatever else uses datasets, starts
here. `open` starts no thread and sends no request; methods block.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.directories import CannotBeMade, local_directory, private_directory, share_space
from dserverfs.base.errors import DserverfsError, NotFound, PermissionDenied, UsageError
from dserverfs.base.hashes import Policy
from dserverfs.base.items import ItemContent
from dserverfs.base.model import UUID, Dataset, DserverURI, User, split_base_uri
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import NotLoaded
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.block_cache import BlockCache
from dserverfs.reading.hot_blocks import HotBlocks
from dserverfs.reading.ranges import RangeFetcher
from dserverfs.reading.stored_items import StoredItems
from dserverfs.remote import login
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource, expires_at
from dserverfs.remote.trust import Trust, is_loopback
from dserverfs.settings import Settings, TokenSetting
from dserverfs.tree.frozen_dataset import DatasetTree
from dserverfs.tree.mount_tree import directories_below, parts_of
from dserverfs.writing.edits import journal
from dserverfs.writing.edits.editable import EditableFiles
from dserverfs.writing.edits.edits import FrozenEdits
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.registry import Registration
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.upload.uploader import Uploader

logger = logging.getLogger(__name__)


class Client:
    """What there is to use of one dserver; close it when done."""

    def __init__(
        self,
        server: str,
        settings: Settings,
        *,
        cache_directory: Path | None = None,
        cache_size: int | None = None,
        verify: Policy = Policy.COMPLETE,
        staging_directory: Path | None = None,
        freeze_delay_s: float | None = None,
        adopt: bool = True,
    ) -> None:
        """`server` is HOST[:PORT]; `cache_size` is in bytes.

        `freeze_delay_s` is for how long a staged dataset is unchanged before it is
        frozen by itself, None for never. With `adopt` the bytes of what is frozen
        here are taken over into the cache.
        """
        self._server = server
        self._directory = local_directory(cache_directory or settings.cache_directory())
        trust = settings.trust(server)
        self._transport = _transport(server, settings, trust)
        self._storage = Storage(trust)
        hot = HotBlocks()
        self._cache = BlockCache(
            self._directory / "blocks", size_limit=cache_size, on_removal=hot.close_removed
        )
        routes = Routes(self._transport)
        self.resolver = Resolver(self._transport, self._storage, routes)
        self.metadata_writes = MetadataWrites(routes, self.resolver)
        known = self._directory / "manifests"
        self._answers = KeptAnswers(self.resolver, known)
        self.catalogue = Catalogue(self._answers, server, known)
        self.reader = BlockReader(self.resolver, self._storage, self._cache, hot, verify=verify)
        self.ranges = RangeFetcher(self.resolver, self._storage)
        self.stored = StoredItems(self.ranges)
        self.uploader = Uploader(self.resolver, self._storage)
        staged = staging_directory or settings.staging_directory()
        self._staging_directory = staged
        self.staging = Staging(staged, server)
        self.editable_files = EditableFiles(self.metadata_writes, self.catalogue)
        self.edits = FrozenEdits(journal.root_of(staged, server), self.editable_files)
        registration = Registration(
            server,
            self.resolver,
            self.uploader,
            self.catalogue,
            self._cache if adopt else None,
            self.stored,
        )
        self.freezer = Freezer(self.uploader, registration, delay_s=freeze_delay_s)

    def open(self) -> Client:
        """Make the directories; raises UsageError if they cannot be used.

        A disk that takes nothing just now is done without.
        """
        with contextlib.suppress(CannotBeMade):  # the cache says so
            private_directory(self._directory)
            private_directory(self._directory / "manifests")
        self._cache.open()
        return self

    def close(self) -> None:
        self.edits.close()
        self.freezer.close()
        self.staging.close()
        self.reader.close()
        self.catalogue.close()
        self._cache.close()
        self._storage.close()
        self._transport.close()

    def __enter__(self) -> Client:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def give_way(self, size_in_bytes: int) -> bool:
        """Have the cache give that many bytes to the staging area; return whether it could."""
        if not share_space(self._directory, self._staging_directory):
            return False
        return self._cache.evict(size_in_bytes)

    def check(self, uri: DserverURI) -> Dataset | None:
        """Return the dataset `uri` names, if it names one; blocks.

        Raises what keeps it from being read: no such host, no dserver, no
        signed-URL routes, a token that is refused, a base URI without
        permission, a dataset that is not there, or several of that uuid where
        the URI names no base URI. A server that is away is no reason if what it
        said last to the token's user is known.
        """
        self._answers.require_signed_urls()
        user = self._answers.accepted_user()
        self.catalogue.learn_user(user)
        if uri.base_uri is None:
            return None if uri.uuid is None else self._only(uri, uri.uuid, user)
        if not _may_search(user, uri.base_uri):
            known = ", ".join(user.search_base_uris) or "none"
            raise PermissionDenied(
                f"{uri}: user {user.username} has no search permission on {uri.base_uri},"
                f" or the server does not have it; permitted: {known}"
            )
        if uri.uuid is None:
            return None
        try:
            return self._answers.dataset_by_uuid(uri.uuid, uri.base_uri)
        except NotFound as error:
            raise NotFound(f"{uri}: no such dataset; a base URI shows all there are") from error

    def datasets(self, uri: DserverURI) -> list[Dataset]:
        """Return the dataset that `uri` names, or all it shows; blocks. Raises as `check` does."""
        only = self.check(uri)
        if only is not None:
            return [only]
        user = self._answers.accepted_user()
        return [
            dataset
            for base_uri in user.search_base_uris
            if _is_below(base_uri, uri.base_uri)
            for dataset in self._answers.datasets(base_uri)
        ]

    def contents(self, dataset: Dataset) -> Iterator[tuple[str, ItemContent]]:
        """Yield every item with its path below `data`; blocks. Raises what the server says."""
        _load(lambda: self.catalogue.index(dataset))
        yield from DatasetTree(dataset, self.catalogue, self.uri_of(dataset)).items()

    def uri_of(self, dataset: Dataset) -> DserverURI:
        return DserverURI(self._server, dataset.base_uri, dataset.uuid)

    def preload(self, uri: DserverURI, only: Future[Dataset | None]) -> None:
        """Load what the first listing of a mount shows; blocks. What fails is asked again later."""
        try:
            dataset = only.result()
            if dataset is not None:
                _load(lambda: self.catalogue.index(dataset))
            elif uri.base_uri is not None:
                base_uri = uri.base_uri
                parts = tuple(split_base_uri(base_uri))
                known = parts_of(self.catalogue.user().search_base_uris)
                reserved = frozenset(directories_below(parts, known))
                if parts in known:
                    _load(lambda: self.catalogue.datasets(base_uri, reserved))
        except DserverfsError as error:
            logger.debug("%s: not loaded ahead: %s", uri, error)

    def _only(self, uri: DserverURI, uuid: UUID, user: User) -> Dataset:
        """Return the dataset of that uuid, whichever base URI holds it."""
        found = [
            dataset
            for dataset in self._answers.datasets_by_uuid(uuid)
            if dataset.base_uri in user.search_base_uris
        ]
        if not found:
            raise NotFound(
                f"{uri}: no base URI that user {user.username} may search has such a dataset"
            )
        if len(found) > 1:
            full = sorted(str(replace(uri, base_uri=dataset.base_uri)) for dataset in found)
            raise UsageError(f"{uri}: is in several base URIs; use one of {' '.join(full)}")
        return found[0]


def whoami(server: str, settings: Settings) -> User:
    """Return whom the token for `server` speaks for; blocks. Raises what the server says."""
    trust = settings.trust(server)
    transport, storage = _transport(server, settings, trust), Storage(trust)
    try:
        resolver = Resolver(transport, storage)
        resolver.capabilities()
        return resolver.user()
    finally:
        storage.close()
        transport.close()


class KeptToken(NamedTuple):
    """A token that was got and kept."""

    user: User
    expires_at: float | None  # epoch seconds
    path: Path
    overridden_by: str | None  # the setting that counts before it


class Login:
    """A password for one dserver, to be exchanged for a token."""

    def __init__(self, server: str, settings: Settings, *, username: str | None) -> None:
        self._server = server
        self._settings = settings
        self._base_url = settings.base_url(server)
        self._generator_url = settings.token_generator_url(server)
        self.username = username or settings.username(server) or _login_name()

    def require_private_way(self) -> None:
        """Raise UsageError if the password or the token could be read on the way."""
        for url in (self._generator_url, self._base_url):
            if url is not None:
                login.require_private_way(url)

    def run(self, password: str) -> KeptToken:
        """Get a token, try it, and keep it; blocks."""
        trust = self._settings.trust(self._server)
        credentials = login.Credentials(self.username, password)
        token = login.fetch_token(self._base_url, self._generator_url, credentials, trust)
        user = login.user_of(self._base_url, token, trust)
        path = self._settings.kept_token_file(self._server)
        login.keep_token(path, token)
        setting = self._settings.token(self._server)
        return KeptToken(user, expires_at(token), path, setting.name if setting else None)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a user id without a name, as in containers
        raise UsageError("say whom to log in: --username NAME") from error


def _transport(server: str, settings: Settings, trust: Trust) -> ServerTransport:
    setting = settings.token(server)
    tokens = (
        TokenSource(None, None) if setting is None else TokenSource(setting.token, setting.file)
    )
    _tell_whose_token_is_sent(server, settings, setting)
    if not trust.verify:
        logger.warning("%s: certificates are not verified", server)
    return ServerTransport(settings.base_url(server), tokens, trust=trust)


def _tell_whose_token_is_sent(
    server: str, settings: Settings, setting: TokenSetting | None
) -> None:
    withheld = settings.withheld_token(server) if setting is None else None
    if withheld is not None:
        logger.warning(
            "%s: %s is not sent there, it is for %s as DSERVER_URL says; run dserverfs login %s",
            server,
            withheld.name,
            withheld.bound_to,
            server,
        )
    host = urllib.parse.urlsplit(settings.base_url(server)).hostname or ""
    if setting is not None and setting.goes_anywhere and not is_loopback(host):
        logger.warning(
            "%s is sent to %s, as to every server that a URI names: DSERVER_URL beside it binds"
            " it to one, and dserverfs login keeps one for each",
            setting.name,
            server,
        )


def _load(ask: Callable[[], object]) -> None:
    """Have what `ask` asks the catalogue for at hand; blocks."""
    try:
        ask()
    except NotLoaded as missing:
        missing.load()


def _may_search(user: User, base_uri: str) -> bool:
    """Return whether there is something to see at or below `base_uri`."""
    return any(_is_below(known, base_uri) for known in user.search_base_uris)


def _is_below(base_uri: str, other: str | None) -> bool:
    """Return whether `base_uri` is `other` or in it; None has all."""
    return other is None or base_uri == other or base_uri.startswith(f"{other}/")
