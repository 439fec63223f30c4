"""The composition root: the parts that read and write datasets of one server, put together.

Used by the mount, the broker and the command line, which start here. The only reader of
the settings that these parts depend on. `open` starts no thread and sends no request.
"""

from __future__ import annotations

import contextlib
import logging
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dserverfs.base.directories import CannotBeMade, local_directory, private_directory, share_space
from dserverfs.base.disk_space import AS_IT_IS
from dserverfs.base.hashes import Policy
from dserverfs.base.loopback import is_loopback
from dserverfs.base.model import User
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import COMMAND, MOUNT, Staleness
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.block_cache import BlockCache, CacheUsage
from dserverfs.reading.hash_objects import HashObjects
from dserverfs.reading.hash_overlays import FirstOf, HashOverlays
from dserverfs.reading.hot_blocks import HotBlocks
from dserverfs.reading.ranges import RangeFetcher
from dserverfs.reading.stored_items import StoredItems
from dserverfs.reading.traced_items import TraceFile
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.site_cache import SiteCache
from dserverfs.remote.token_renewal import Renewal
from dserverfs.remote.tokens import LastDay, TokenSource
from dserverfs.remote.trust import Trust
from dserverfs.settings import Settings, TokenSetting
from dserverfs.writing.edits import journal
from dserverfs.writing.edits.editable import EditableFiles
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.registry import Registration
from dserverfs.writing.staging.area import Staging
from dserverfs.writing.staging.used_directories import UsedDirectories
from dserverfs.writing.upload.uploader import Uploader

logger = logging.getLogger(__name__)

AS_COMMANDS = COMMAND  # the staleness of what a command is told


class Client:
    """The parts for one dserver; close it when done.

    catalogue        which datasets there are, and what they are, also while the server is away
    reader, stored   bytes of items: through the caches, and past them
    site_cache       the cache that this site's hosts share, if there is one
    cache            the blocks on the disk
    block_hashes     those that the server has of datasets' blocks
    editable_files,
    metadata_writes  changes of a frozen dataset on the server, as dtool's commands make them
    edits            changes of frozen datasets in a mount, which wait for the server
    staging          datasets under construction; freezer, uploader: on their way to the server
    trace            what programs read without a mount, if their command is traced
    tokens           where the token comes from
    resolver         the server itself, past all that is kept; for tests and benchmarks
    """

    def __init__(
        self,
        server: str,
        settings: Settings,
        *,
        cache_directory: Path | None = None,
        cache_size: int | None = AS_IT_IS,
        verify: Policy = Policy.COMPLETE,
        staging_directory: Path | None = None,
        freeze_delay_s: float | None = None,
        adopt: bool = True,
        cache_patience_s: float | None = None,
        staleness: Staleness = MOUNT,
    ) -> None:
        """`server` is HOST[:PORT]; `cache_size` is in bytes, as of a BlockCache.

        `freeze_delay_s` is for how long a staged dataset is unchanged before it is
        frozen by itself, None for never. With `adopt` the bytes of what is frozen
        here are taken over into the cache. `cache_patience_s` is how long a block waits for a
        disk that is slower than the network, before it is read uncached. `staleness` is that
        of the catalogue's answers.
        """
        self._directory = local_directory(cache_directory or settings.cache_directory())
        trust = settings.trust(server)
        self.tokens = token_source(server, settings)
        self._transport = _transport(server, settings, trust, self.tokens)
        self.site_cache = site_cache(server, settings, trust)
        self._storage = Storage(trust)
        # For items alone. By hashes that it gave as well, the cache could give any bytes.
        nearest = self._storage.behind(self.site_cache)
        hot = HotBlocks()
        self.cache = BlockCache(
            self._directory / "blocks", size_limit=cache_size, on_removal=hot.close_removed
        )
        routes = Routes(self._transport)
        self.resolver = Resolver(self._transport, self._storage, routes)
        self.metadata_writes = MetadataWrites(routes, self.resolver)
        known = self._directory / "manifests"
        answers = KeptAnswers(self.resolver, known, staleness=staleness)
        self.catalogue = Catalogue(answers, server, known, staleness=staleness)
        self.block_hashes = FirstOf(
            [HashObjects(self.resolver, self._storage), HashOverlays(self.resolver)]
        )
        self.reader = BlockReader(
            self.resolver,
            nearest,
            self.cache,
            hot,
            verify=verify,
            block_hashes=self.block_hashes,
            cache_patience_s=cache_patience_s,
        )
        self.ranges = self.reader.ranges
        self.stored = StoredItems(RangeFetcher(self.resolver, self._storage))
        self.uploader = Uploader(
            self.resolver, self._storage, hash_overlay=settings.writes_hash_overlay(server)
        )
        staged = staging_directory or settings.staging_directory()
        self._staging_directory = staged
        self._used_directories = UsedDirectories(settings.used_staging_directories())
        self.staging = Staging(staged, server, excluded=settings.excluded())
        self.editable_files = EditableFiles(self.metadata_writes, self.catalogue)
        self.edits = DatasetEdits(journal.root_of(staged, server), self.editable_files)
        trace_file = settings.trace_file()
        self.trace = None if trace_file is None else TraceFile(trace_file, server)
        registration = Registration(
            server,
            self.resolver,
            self.uploader,
            self.catalogue,
            self.cache if adopt else None,
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
        self.cache.open()
        return self

    def note_staging_directory(self) -> None:
        """Have `dserverfs status` look into the staging directory from now on."""
        self._used_directories.note(self._staging_directory)

    def close(self) -> None:
        if self.trace is not None:
            self.trace.close()
        self.edits.close()
        self.freezer.close()
        self.staging.close()
        self.reader.close()
        self.catalogue.close()
        self.cache.close()
        self._storage.close()
        if self.site_cache is not None:
            self.site_cache.close()
        self._transport.close()

    def __enter__(self) -> Client:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def require_signed_urls(self) -> None:
        """Raise Unsupported if the server cannot sign URLs, without which no item is fetched."""
        self.resolver.require_signed_urls()

    def cache_usage(self) -> CacheUsage | None:
        """Return how full the cache is; None if it cannot be asked."""
        return self.cache.usage()

    def give_way(self, size_in_bytes: int) -> bool:
        """Have the cache give that many bytes to the staging area; return whether it could."""
        if not share_space(self._directory, self._staging_directory):
            return False
        return self.cache.evict(size_in_bytes)


class Remote(NamedTuple):
    """A server and its store, past all that is kept."""

    tokens: TokenSource
    transport: ServerTransport
    storage: Storage
    resolver: Resolver
    site_cache: SiteCache | None


@contextlib.contextmanager
def remote(server: str, settings: Settings) -> Iterator[Remote]:
    """Yield what asks `server`; no request is sent yet."""
    trust = settings.trust(server)
    tokens = token_source(server, settings)
    near = site_cache(server, settings, trust)
    transport, storage = _transport(server, settings, trust, tokens), Storage(trust)
    try:
        yield Remote(tokens, transport, storage, Resolver(transport, storage), near)
    finally:
        storage.close()
        if near is not None:
            near.close()
        transport.close()


def whoami(server: str, settings: Settings) -> User:
    """Return the user of the token for `server`; blocks. Raises the server's refusal."""
    with remote(server, settings) as asked:
        asked.resolver.capabilities()
        return asked.resolver.user()


def token_source(server: str, settings: Settings) -> TokenSource:
    """Return where the token for `server` comes from; asks nobody yet."""
    setting = settings.token(server)
    if setting is None:
        return TokenSource(None, None, why_none=_why_token_is_withheld(server, settings))
    renew = None
    if setting.name is None and setting.file is not None:  # no other file is ours to change
        renew = Renewal(settings.base_url(server), setting.file, settings.trust(server))
    # A command has its own ways to a later one.
    tell_end = None if setting.command else LastDay()
    return TokenSource(
        setting.token, setting.file, command=setting.command, renew=renew, tell_end=tell_end
    )


def site_cache(server: str, settings: Settings, trust: Trust) -> SiteCache | None:
    """Return the cache before the store of `server`, if one is set; asks it nothing yet."""
    url = settings.site_cache(server)
    return None if url is None else SiteCache(url, trust)


def _transport(
    server: str, settings: Settings, trust: Trust, tokens: TokenSource
) -> ServerTransport:
    setting = settings.token(server)
    _tell_whose_token_is_sent(server, settings, setting)
    if not trust.verify:
        logger.warning("%s: certificates are not verified", server)
    return ServerTransport(settings.base_url(server), tokens, trust=trust)


def _why_token_is_withheld(server: str, settings: Settings) -> str | None:
    withheld = settings.withheld_token(server)
    if withheld is None:
        return None
    return (
        f"{server}: {withheld.name} is not sent there, it is for {withheld.bound_to} as DSERVER_URL"
        f" says; run dserverfs login {server}"
    )


def _tell_whose_token_is_sent(
    server: str, settings: Settings, setting: TokenSetting | None
) -> None:
    host = urllib.parse.urlsplit(settings.base_url(server)).hostname or ""
    if setting is not None and setting.goes_anywhere and not is_loopback(host):
        logger.warning(
            "%s is sent to %s, as to every server that a URI names: DSERVER_URL beside it binds"
            " it to one, and dserverfs login keeps one for each",
            setting.name,
            server,
        )
