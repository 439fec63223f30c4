"""The parts of one mount: the operations, and the objects that they and the commands work on.

Made once, by the daemon, when the channel has begun and before the mount is made. Knows how they
depend on each other, and nothing of their life.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import trio

from dserverfs.base.end_signals import EndSignals
from dserverfs.base.errors import DserverfsError, LocalDiskError
from dserverfs.base.model import Dataset, DserverURI, is_below
from dserverfs.client import Client
from dserverfs.mount.cache_commands import CacheCommands
from dserverfs.mount.channel.handles import NO_HANDLES
from dserverfs.mount.channel.link import Link
from dserverfs.mount.control import told_by_mount
from dserverfs.mount.kept_errors import KeptErrors
from dserverfs.mount.launcher import MountOptions
from dserverfs.mount.metrics import Metrics
from dserverfs.mount.operations import Operations
from dserverfs.mount.recent_errors import RecentErrors
from dserverfs.mount.replies import Ownership
from dserverfs.mount.request_counts import RequestCounts
from dserverfs.mount.taking_over import Numbers, Replacement
from dserverfs.mount.told_contents import ToldContents
from dserverfs.mount.told_rows import ToldRows
from dserverfs.reading.block_reader import BlockReader
from dserverfs.reading.cache.block_cache import CacheUsage
from dserverfs.remote.contact import Away
from dserverfs.remote.site_cache import SiteCache
from dserverfs.remote.tokens import TokenSource
from dserverfs.tree import description
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.mount_tree import Tree
from dserverfs.tree.number_journal import NumberJournal
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.freezer import Freezer
from dserverfs.writing.staging.area import Staging

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The operations, and the objects that they and the commands work on."""

    operations: Operations
    tree: Tree
    staging: Staging | None
    freezer: Freezer
    edits: DatasetEdits
    reader: BlockReader
    cached: CacheCommands
    tokens: TokenSource
    recent_errors: RecentErrors
    kept_errors: KeptErrors | None
    cache_usage: Callable[[], CacheUsage | None]
    site_cache: SiteCache | None
    look: Callable[[], Away | None]
    metrics: Metrics
    control: bytes | None  # what a mount says whose device was given
    signals: EndSignals
    failures: list[DserverfsError]  # to become one that answers
    unmounted: trio.Event  # the kernel has ended it, as the channel says
    channel: Link | None
    contents: ToldContents | None  # with a channel
    journal: NumberJournal  # of inode numbers
    replacement: Replacement

    def is_replaced(self) -> bool:
        """Return whether the mount goes on without this process."""
        return self.replacement.has_begun and not self.signals.seen

    @classmethod
    def of(
        cls,
        options: MountOptions,
        client: Client,
        only: Dataset | None,
        kept_errors: KeptErrors | None,
        channel: Link | None,
        numbers: Numbers,
        signals: EndSignals,
    ) -> Parts:
        freezer, edits = client.freezer, client.edits
        staging = None
        if not options.read_only:
            client.note_staging_directory()
            edits.open(lambda dataset: _is_shown(dataset, options.uri, only), numbers.of_edits())
            if only is None:
                staging = _open_staging(client)
        shown_edits = None if options.read_only else edits
        control = None if options.given is None else told_by_mount()
        tree = _tree(options, client, only, staging, shown_edits, numbers, control)
        counts = RequestCounts() if channel is None else RequestCounts(lambda: channel.counts)
        metrics = Metrics(
            client,
            counts,
            lambda: description.of_all_staged(staging, freezer, options.uri.server),
        )
        file_system = _file_system(options, client, tree, staging, shown_edits, metrics)
        ownership = Ownership(options.uid, options.gid, options.umask)
        recent_errors = RecentErrors(options.uri.server)
        told = None if channel is None else ToldRows(channel, tree, ownership)
        contents = None
        if channel is not None and told is not None:
            contents = ToldContents(channel, told, client.reader)
        operations = Operations(
            file_system,
            client.reader,
            ownership,
            recent_errors,
            counts,
            channel,
            told,
            others_read=None if options.given is None else options.allow_other,
            inherited=NO_HANDLES if channel is None else channel.inherited,
        )
        return cls(
            operations,
            tree,
            staging,
            freezer,
            edits,
            client.reader,
            CacheCommands(options.uri.server, client.reader, client.cache),
            client.tokens,
            recent_errors,
            kept_errors,
            client.cache_usage,
            client.site_cache,
            client.resolver.look,
            metrics,
            control,
            signals,
            [],
            trio.Event(),
            channel,
            contents,
            numbers.journal,
            Replacement(options, channel, staging, edits),
        )


def _file_system(
    options: MountOptions,
    client: Client,
    tree: Tree,
    staging: Staging | None,
    edits: DatasetEdits | None,
    metrics: Metrics,
) -> FileSystem:
    attributes = functools.partial(description.attributes, server=options.uri.server)
    return FileSystem(
        tree,
        client.freezer,
        client.give_way,
        staging=staging,
        edits=edits,
        umask=options.umask,
        attributes_of=attributes if options.xattr else None,
        stats=metrics.text,
    )


def _tree(
    options: MountOptions,
    client: Client,
    only: Dataset | None,
    staging: Staging | None,
    edits: DatasetEdits | None,
    numbers: Numbers,
    control: bytes | None,
) -> Tree:
    """Return what is shown, by the numbers of the daemon before, if there was one."""
    tree = Tree(
        options.uri,
        client.catalogue,
        numbers.mounted_ns,
        staging,
        edits,
        control=control,
        journal=numbers.journal,
    )
    numbers.restore(tree)
    if only is not None:
        tree.show_only(only)
    return tree


def _open_staging(client: Client) -> Staging:
    """Return the staging area, with the freezer at work on what is in it."""
    staging = client.staging.open()
    for base_uri in staging.base_uris():
        try:
            for staged in staging.datasets(base_uri):
                client.freezer.resume(staged)
        except LocalDiskError as error:
            logger.warning("%s", error)
    client.freezer.open(staging.left_behind)
    return staging


def _is_shown(dataset: Dataset, uri: DserverURI, only: Dataset | None) -> bool:
    """Return whether a mount of `uri` shows that dataset, if its user may see it."""
    if only is not None:
        return dataset.uri == only.uri
    return is_below(dataset.base_uri, uri.base_uri)
