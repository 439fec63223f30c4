"""Private directories, and where a cache may lie: on a file system of this machine.

Used by the client and the staging area. SQLite's write-ahead log needs memory shared by all
processes that use a database, which a network file system does not give; a home directory
on one is usual on clusters. Such a directory is passed over for a local one, as private.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from dserverfs.base import mountinfo
from dserverfs.base.errors import UsageError
from dserverfs.base.local_files import make_private

logger = logging.getLogger(__name__)

_NETWORK = {
    *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs"),
    *("gpfs", "kafs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs"),
    *("pvfs2", "smb3", "smbfs", "wekafs", "fuse"),
}
# Every other FUSE file system is taken for one of the network.
_LOCAL_FUSE = {
    *("fuse.bindfs", "fuse.encfs", "fuse.exfat", "fuse.fuse-overlayfs", "fuse.gocryptfs"),
    *("fuse.mergerfs", "fuse.ntfs", "fuse.ntfs-3g", "fuse.securefs", "fuse.zfs-fuse"),
}


_TAKES_NOTHING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class CannotBeMade(UsageError):
    """The directory is not there, and the disk takes nothing now; it may later."""


def is_of_network(fstype: str) -> bool:
    """Return whether a file system of that type may be another machine's."""
    if fstype.startswith("fuse."):
        return fstype not in _LOCAL_FUSE
    return fstype in _NETWORK


def fstype_of(path: Path) -> str:
    """Return the type of the file system that has `path`, or will have it; "" if unknown."""
    mounted = mountinfo.mount_of(os.path.realpath(path))
    return "" if mounted is None else mounted.fstype


def local_directory(
    wanted: Path,
    *,
    fstype_of: Callable[[Path], str] = fstype_of,
    environment: Mapping[str, str] = os.environ,
    temporary: Path = Path("/var/tmp"),
) -> Path:
    """Return `wanted`, or a directory of this user on a local file system in its place.

    Says in the log that it is another. Raises UsageError if neither can be used.
    """
    fstype = fstype_of(wanted)
    if not is_of_network(fstype):
        return wanted
    # The same for all processes, and another for another wish.
    name = f"cache-{hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]}"
    for parent in (temporary / f"dserverfs-{os.geteuid()}", _runtime(environment)):
        if parent is None or is_of_network(fstype_of(parent)):
            continue
        try:
            found = private_directory(private_directory(parent) / name)
        except UsageError as error:
            logger.info("%s", error)
            continue
        logger.warning(
            "%s is on a network file system (%s), which cannot hold the cache: %s is used;"
            " DSERVER_CACHE_DIR or --cache-dir names another",
            wanted,
            fstype,
            found,
        )
        return found
    raise UsageError(
        f"{wanted}: is on a network file system ({fstype}), which cannot hold the cache;"
        " name a directory on a local disk with --cache-dir"
    )


def _runtime(environment: Mapping[str, str]) -> Path | None:
    """Return a directory below XDG_RUNTIME_DIR: in memory on most machines, so the last resort."""
    directory = environment.get("XDG_RUNTIME_DIR")
    return Path(directory) / "dserverfs" if directory else None


def share_space(one: Path, other: Path) -> bool:
    """Return whether what is freed below one directory can be used below the other.

    Also where the two are different devices on one pool, as subvolumes of btrfs are.
    """
    try:
        if one.stat().st_dev == other.stat().st_dev:
            return True
        ours, theirs = os.statvfs(one), os.statvfs(other)
    except OSError:
        return True
    return (ours.f_blocks, ours.f_bavail) == (theirs.f_blocks, theirs.f_bavail)


def private_directory(path: Path, option: str = "--cache-dir or DSERVER_CACHE_DIR") -> Path:
    """Make `path` if need be and return it; raises UsageError unless it is ours and private.

    Those above it that are missing are made as private. `option` is how the user can
    name another one. Raises CannotBeMade, which is one, where the disk takes nothing just now.
    """
    try:
        make_private(path)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise UsageError(f"{path}: is not a directory of yours; name another with {option}")
        if status.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        kind = CannotBeMade if error.errno in _TAKES_NOTHING else UsageError
        raise kind(
            f"{path}: cannot be used as a directory: {error.strerror}; name another with {option}"
        ) from error
    return path
