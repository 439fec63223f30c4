"""The mount daemon's beginning: the server is asked while the rest is imported.

Started by the command. pyfuse3, trio and the operations take 0.2 s to import, in
which the server answers and the first listing arrives.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from concurrent.futures import Future, ThreadPoolExecutor

from dserverfs.base import descriptors
from dserverfs.base.end_signals import EndSignals
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.model import Dataset, DserverURI, split_base_uri
from dserverfs.base.process_name import set_process_name
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.refreshed import loaded
from dserverfs.client import Client
from dserverfs.mount import mountpoint
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.succession import Heritage
from dserverfs.mount.launcher import MountOptions
from dserverfs.settings import Settings
from dserverfs.tree.upper_directories import directories_below, parts_of

logger = logging.getLogger(__name__)

PROCESS_NAME = "dserverfs"


def run(
    options: MountOptions,
    settings: Settings,
    ready_fd: int | None,
    heritage: Heritage | None = None,
) -> None:
    """Mount and serve until unmounted or told to end; raises DserverfsError if it cannot.

    `ready_fd` is where to say that the mount answers; it is closed. `heritage` is of a daemon
    that is dead, whose mount is served on.
    """
    set_process_name(PROCESS_NAME)
    channel, signals = None, EndSignals()
    if heritage is not None:
        signals.hold()  # there is a mount
        mountpoint.require_packages()
        channel = inherited_channel(heritage)
    elif options.given is None:
        mountpoint.require_fuse()
    else:  # who gives it has opened and mounted it, and unmounts it
        mountpoint.require_packages()
    if channel is None:
        # Before there are threads, and much to be copied.
        channel = started_channel(options.channel)
    descriptors.raise_limit()  # the client's cache keeps files open by it
    client = Client(
        options.uri.server,
        settings,
        cache_directory=options.cache_directory,
        cache_size=options.cache_size,
        verify=options.verify,
        staging_directory=options.staging_directory,
        freeze_delay_s=options.freeze_delay_s,
    )
    with contextlib.closing(client):
        asking = ThreadPoolExecutor(1, thread_name_prefix="check")
        # To make the cache's database waits for the disk several times.
        only = asking.submit(lambda: client.open().catalogue.check(options.uri))
        asking.submit(preload, client.catalogue, options.uri, only)
        try:
            try:
                from dserverfs.mount import serving
            except ImportError as error:  # libfuse may have gone since pyfuse3 was compiled
                raise UsageError(
                    f"what mounts need cannot be loaded: {error}; dserverfs doctor says more"
                ) from error
            if channel is not None and heritage is None:
                channel = serving_channel(channel, options.channel)
            serving.run(options, settings, client, only, ready_fd, signals, channel)
        finally:
            if channel is not None:
                channel.close()
            asking.shutdown(wait=False, cancel_futures=True)


def inherited_channel(heritage: Heritage) -> Link:
    """Return the channel that has started this process; raises UsageError."""
    try:
        return Link.inherit(heritage)
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"the dead daemon's mount cannot be taken over: {error}") from error


def started_channel(wanted: str) -> Link | None:
    """Return the channel that a mount is to have; raises UsageError if it must, and cannot."""
    if wanted == "off":
        return None
    try:
        return Link.start()
    except OSError as error:
        _do_without(wanted, error)
        return None


def serving_channel(started: Link, wanted: str) -> Link | None:
    """Return the channel if it has begun to serve; else as `started_channel`. Blocks."""
    try:
        started.await_start()
    except OSError as error:
        started.close()
        _do_without(wanted, error)
        return None
    return started


def _do_without(wanted: str, error: OSError) -> None:
    if wanted == "on":
        raise UsageError(
            f"--channel on: the channel cannot be started: {error}; try --channel off"
        ) from error
    logger.warning("mounted without a channel, which cannot be started: %s", error)


def preload(catalogue: Catalogue, uri: DserverURI, only: Future[Dataset | None]) -> None:
    """Load what the first listing of a mount shows; blocks. A failure is met again later."""
    try:
        dataset = only.result()
        if dataset is not None:
            loaded(lambda: catalogue.index(dataset))
        elif uri.base_uri is not None:
            base_uri = uri.base_uri
            parts = tuple(split_base_uri(base_uri))
            known = parts_of(catalogue.user().search_base_uris)
            reserved = frozenset(directories_below(parts, known))
            if parts in known:
                loaded(lambda: catalogue.datasets(base_uri, reserved))
    except DserverfsError as error:
        logger.debug("%s: not loaded ahead: %s", uri, error)
