"""Whom a mount answers whose device was given to the daemon.

Used by the guard of the handlers. A mount that dserverfs makes has the kernel compare modes, and
lets other users in only if asked to (`default_permissions`, `allow_other`). What the program said
that mounted a given device is not known, so the same is decided here, by the uid that the kernel
tells of each request. Names and attributes that the kernel remembers for its user can be seen by
whom it lets in; what is in files and directories is asked for each time that one is opened.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dserverfs.base.errors import PermissionDenied

_READ, _WRITE, _PASS = 4, 2, 1  # as in the last digit of a mode
_CHANGE_NAME = _WRITE | _PASS
# By request: the arguments that are inodes, and what is done to them.
_NEEDED: Mapping[str, tuple[tuple[str, int], ...]] = {
    "lookup": (("parent_inode", _PASS),),
    "getattr": (),
    "readlink": (),
    "statfs": (),
    "getxattr": (("inode", _READ),),
    "listxattr": (("inode", _READ),),
    "opendir": (("inode", _READ),),
    "create": (("parent_inode", _CHANGE_NAME),),
    "mkdir": (("parent_inode", _CHANGE_NAME),),
    "mknod": (("parent_inode", _CHANGE_NAME),),
    "symlink": (("parent_inode", _CHANGE_NAME),),
    "link": (("new_parent_inode", _CHANGE_NAME),),
    "unlink": (("parent_inode", _CHANGE_NAME),),
    "rmdir": (("parent_inode", _CHANGE_NAME),),
    "rename": (("parent_inode_old", _CHANGE_NAME), ("parent_inode_new", _CHANGE_NAME)),
}
_OF_ACCESS = {os.O_RDONLY: _READ, os.O_WRONLY: _WRITE, os.O_RDWR: _READ | _WRITE}


class Callers:
    """The users of one mount."""

    def __init__(
        self, owner: int, permissions: Callable[[int], Awaitable[int]], *, others_read: bool
    ) -> None:
        """`owner` is the uid of all files; `permissions` gives an inode's, as they are shown.

        With `others_read` others than the owner and root are held to the modes; else nothing is
        for them.
        """
        self._owner = owner
        self._permissions = permissions
        self._others_read = others_read

    async def admit(self, request: str, arguments: Mapping[str, Any]) -> None:
        """Raise PermissionDenied unless a request is one that its user may make."""
        ctx = arguments.get("ctx")
        if ctx is None or ctx.uid in (self._owner, 0):
            return  # one without is about what is open
        needed = _NEEDED.get(request)
        if request == "open":
            needed = (("inode", _OF_ACCESS.get(arguments["flags"] & os.O_ACCMODE, _WRITE)),)
        if needed is None or not self._others_read:
            raise PermissionDenied(f"user {ctx.uid} is not the one whose mount it is")
        for name, bits in needed:
            if bits & ~await self._permissions(arguments[name]):
                raise PermissionDenied(f"user {ctx.uid} is not the one whose mount it is")
