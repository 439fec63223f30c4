"""Programs to which a staged dataset without a `data` shows one: a link to where its items are.

A link, and not a directory: the kernel follows it by itself in all that is done below, and
each item keeps one place. No listing shows it.
"""

from __future__ import annotations

from dserverfs.base.dtool_layout import DATA
from dserverfs.tree.staged_dataset import StagedTree

NAME = DATA.encode()
# A program that copies a directory looks at what is there before it makes its own: one of the
# source that is called `data` has to become one here, even if other items were copied before it.
_COPIERS = frozenset(
    {"7z", "7za", "7zz", "bsdtar", "caja", "cp", "cpio", "dolphin", "git", "install", "kioworker"}
    | {"mc", "mv", "nautilus", "nemo", "pcmanfm", "rclone", "rsync", "scp", "sftp-server", "tar"}
    | {"Thunar", "thunar", "unzip"}
)


def is_shown(tree: StagedTree, number: int, thread: int) -> bool:
    """Return whether `data` in a directory is the link, for the thread that asks."""
    return tree.has_link(number, DATA) and tree.staged.written_by.name_of(thread) not in _COPIERS
