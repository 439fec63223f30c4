"""The attributes of a file: those stat(2) shows, and those chmod(2) and others change.

Invariant: the order of Attributes is that in which a dataset's listing makes them, and
the mount unpacks them; by name it took a third of the time of a listing.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

FROZEN_S = 365.0 * 24 * 3600  # how long the kernel may believe what never changes
MUTABLE_S = 1.0  # beside the catalogue's own freshness, so that both do not add up
# In place of a link's permissions: the bit of a plain file, which the mount adds, is one of these.
LINK_MODE = stat.S_IFLNK | 0o777
EDITABLE_S = 0.0  # what can be renamed here: another file may have its name the next moment


class Attributes(NamedTuple):
    """The attributes that stat shows, but for the owner."""

    number: int
    is_directory: bool
    permissions: int
    size_in_bytes: int
    mtime_ns: int
    believed_s: float  # the kernel may keep it so long
    # Only files that may change have these; None: as for a frozen one.
    number_of_links: int | None = None
    blocks: int | None = None  # of 512 bytes
    atime_ns: int | None = None
    ctime_ns: int | None = None


class Entry(NamedTuple):
    """A directory entry; `cookie` is where a listing goes on behind it."""

    name: str
    attributes: Attributes
    cookie: int


class Changes(NamedTuple):
    """The attributes that setattr sets; None leaves one as it is."""

    mode: int | None = None
    size_in_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
