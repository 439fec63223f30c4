"""Having the kernel forget what it keeps of a mount, without waiting for it; in any thread.

The kernel waits for pages under read and for requests about names, of which some wait for this
process: so it is asked in a thread of its own.
"""

from __future__ import annotations

import functools
import logging
import os

import pyfuse3
from pyfuse3 import FileNameT, InodeT

from dserverfs.base import threads
from dserverfs.mount.channel.link import Link

logger = logging.getLogger(__name__)


def of_pages(channel: Link | None, inode: int, name: str) -> None:
    """Have wrong bytes of an inode forgotten: at once by the channel, soon by the kernel.

    `name` is for the log.
    """
    ask = functools.partial(pyfuse3.invalidate_inode, InodeT(inode))
    if channel is not None:
        channel.forget(inode)
        ask = functools.partial(channel.invalidate_inode, inode)

    def invalidate() -> None:
        try:
            ask()
        except OSError as error:
            logger.warning("the kernel may keep wrong bytes of %s: %s", name, error)

    if threads.started(invalidate, name="invalidate") is None:
        logger.warning("the kernel may keep wrong bytes of %s: there is no thread to ask it", name)


def of_name(channel: Link | None, directory: int, name: str) -> None:
    """Have a name forgotten soon."""
    entry = os.fsencode(name)
    if channel is None:
        pyfuse3.invalidate_entry_async(InodeT(directory), FileNameT(entry), ignore_enoent=True)
    else:  # without a thread the name is looked up when it is old
        forget = functools.partial(channel.invalidate_entry, directory, entry)
        threads.started(forget, name="invalidate")
