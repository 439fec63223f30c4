"""The mount daemon's beginning: the server is asked while the rest is imported.

Started by the command. pyfuse3, trio and the operations take 0.2 s to import, in
which the server answers and the first listing arrives.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from dserverfs.client import Client
from dserverfs.mount.launcher import MountOptions
from dserverfs.settings import Settings


def run(options: MountOptions, settings: Settings, ready_fd: int | None) -> None:
    """Mount and serve until unmounted or told to end; raises DserverfsError if it cannot.

    `ready_fd` is where to say that the mount answers; it is closed.
    """
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
        only = asking.submit(lambda: client.open().check(options.uri))
        asking.submit(client.preload, options.uri, only)
        try:
            from dserverfs.mount import serving

            serving.run(options, settings, client, only, ready_fd)
        finally:
            asking.shutdown(wait=False, cancel_futures=True)
