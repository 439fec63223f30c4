"""Names that no item has: leavings of desktops, editors and file systems.

Used where files become items. A pattern is a shell's, of one name: a file of that name is
excluded at any depth, and a directory with all in it. No state, no I/O.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

# What nobody means to publish, and no more: an item that is missing is worse than one too many.
# So no `*~` and `*.bak`, of which a user may want one back.
DEFAULT = (
    ".DS_Store",  # the Finder's view of a directory
    "._*",  # attributes that macOS keeps beside a file
    "Thumbs.db",
    "desktop.ini",
    ".Trash-*",  # what was deleted in a file manager
    ".ipynb_checkpoints",
    "__pycache__",
    ".*.sw[a-p]",  # of Vim; `*.swp` without a dot before it is input of a model of soil water
    ".#*",  # locks of Emacs
    ".~lock.*#",  # and of LibreOffice
    ".nfs[0-9a-f]*",  # deleted while a program had it open
    ".fuse_hidden*",
)


class Excluded:
    """The names that some patterns match: `name in excluded`."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._match = re.compile("|".join(map(fnmatch.translate, self.patterns)) or "(?!)").match

    def __contains__(self, name: str) -> bool:
        return self._match(name) is not None


NOTHING = Excluded()
