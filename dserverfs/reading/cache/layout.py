"""The layout of a block cache's directory: which versions of dserverfs may use it.

Used by the cache, when it opens the directory. A cache of a newer version is left alone,
whatever is in it. What is in the place of a file of ours and is none gives way: a cache
holds nothing that cannot be fetched again.

On disk: `format`, the number of the layout, with its seal. A directory without it, or with a
damaged one, is taken for ours.
"""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

from dserverfs.base.durable_files import remove_left_beside
from dserverfs.base.errors import UsageError
from dserverfs.base.local_files import clear_way
from dserverfs.base.sealed_files import sealed_content, write_sealed

LAYOUT = 1
LOCK = "lock"
FORMAT = "format"
DATABASE = "cache.db"
PINS = "pins.db"
_FILES = (
    *(FORMAT, "evicted", "swept"),
    *(f"{name}{end}" for name in (DATABASE, PINS) for end in ("", "-wal", "-shm")),
)
_ABANDONED_S = 3600.0


def clear_lock(directory: Path) -> None:
    """Remove what is in the place of the lock and is no file; raises OSError."""
    clear_way(directory / LOCK)


def prepare(directory: Path) -> None:
    """Make the directory usable, for the holder of its lock.

    Raises UsageError if it is a newer version's, which changes nothing, and OSError.
    """
    _require_no_newer(directory / FORMAT)
    for name in _FILES:
        clear_way(directory / name)
    for digit in "0123456789abcdef":
        clear_way(directory / digit, is_kind=stat.S_ISDIR)
    _write_format(directory / FORMAT)


def _require_no_newer(path: Path) -> None:
    layout = _read(path)
    if layout is not None and layout != b"%d" % LAYOUT:
        raise UsageError(
            f"{path.parent}: is the cache of a newer version of dserverfs, and is left as it is;"
            " update dserverfs, or name another directory with --cache-dir"
        )


def _write_format(path: Path) -> None:
    if _read(path) is None:
        with contextlib.suppress(OSError):  # a full disk: another time
            write_sealed(path, b"%d" % LAYOUT)
            remove_left_beside(path, older_than_s=_ABANDONED_S)


def _read(path: Path) -> bytes | None:
    try:
        return sealed_content(path)
    except OSError:
        return None
