"""Who is shown `data` in a staged dataset that has none: a link to where the items are.

A link, and not a directory: the kernel follows it by itself whatever is done below, and
each item keeps one place. No listing shows it.
"""

from __future__ import annotations

import stat

from pyfuse3 import EntryAttributes, FileNameT

from dserverfs.tree.afterlife import LINK
from dserverfs.tree.staged_dataset import DATA_LINK, StagedTree

TARGET = FileNameT(DATA_LINK)
# Who copies a directory looks what is there before making its own: one of the source that is
# called `data` has to become one here, whatever else was copied before it.
_COPIERS = frozenset(
    {"7z", "7za", "7zz", "bsdtar", "caja", "cp", "cpio", "dolphin", "git", "install", "kioworker"}
    | {"mc", "mv", "nautilus", "nemo", "pcmanfm", "rclone", "rsync", "scp", "sftp-server", "tar"}
    | {"Thunar", "thunar", "unzip"}
)


def is_shown(tree: StagedTree, number: int, name: str, thread: int) -> bool:
    """Return whether `name` in a directory is the link, for the thread that asks."""
    return tree.has_link(number, name) and tree.staged.written_by.name_of(thread) not in _COPIERS


def is_link(number: int) -> bool:
    """Return whether a number within a staged dataset is the link's."""
    return number == LINK


def as_link(entry: EntryAttributes) -> EntryAttributes:
    """Make the attributes of a file those of a link."""
    entry.st_mode = stat.S_IFLNK | 0o777
    return entry
