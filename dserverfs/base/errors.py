"""The one tree of errors that dserverfs raises on purpose.

Used by every module; knows none of them. The message of each is one line for a
person: what was tried, on what, what the other side said, what to do. Letters of
others that do not print are escaped in it. No message holds a token or the query
of a signed URL.

    DserverfsError
    +-- UsageError               the caller asked for what cannot be done; no traceback
    |   +-- NameTooLong          no store could hold an item of that path
    |   +-- NotUTF8              a name that is no text
    |   +-- CannotHold           a kind of file that no dataset can hold
    |   +-- DaemonSilent         the daemon of a mount cannot be asked
    |       +-- DaemonStopped    a signal, or a debugger, has stopped it
    +-- NotFound                 dataset, item or route is gone
    |   +-- StaleInode           nobody knows what an inode number stood for
    +-- PermissionDenied         the token is good, the right is missing
    |   +-- NotAuthenticated     token missing, expired or malformed
    +-- Unreachable              server or store does not answer
    |   +-- NotConnected         there was not even a connection
    |   +-- Busy                 it answers that it cannot now
    |   +-- NotTheServer         something answers in its place
    |   +-- DeadlineExceeded     it answers too slowly
    |       +-- Stalled          one connection did; another may not
    +-- ProtocolError            the answer is not one that we can use
    |   +-- UnusableAnswer       a second answer may be usable
    +-- IntegrityError           bytes are not what the manifest says
    |   +-- Garbled              they are not what was asked for; a second answer may be
    +-- NotStored                the store lacks an object that dserver or the manifest names
    +-- LocalDiskError           a file of our own (cache, state) cannot be read or written
    +-- StorageRefused           the store refused a signed URL, which may have expired
    +-- Unsupported              this server has no route for it
    +-- Conflict                 exists already, or is being written by another
    |   +-- NameTaken            another dataset is shown under that name
    |   +-- ChangedMeanwhile     another user has changed it since it was read
    +-- Frozen                   can no longer be changed
    +-- TooLarge                 an item is larger than the server can have stored
    +-- TooManyOpen              programs have as many files open as the mount can hold open
    +-- ItemChanged              a local file is not what was hashed
    +-- Cancelled                the caller asked to stop

Each carries `uri` and `status` where they are known, and can be made with a
message and these two alone: code that copies, pickles or words an error anew need
not know its kind. The errno of each error is said in one place,
`dserverfs.mount.errnos`; those that are worth another attempt, in `dserverfs.base.retry`.
A mount's tree has more kinds, `dserverfs.tree.refusals`, of what every file system refuses.
"""

from __future__ import annotations

from typing import Any

from dserverfs.base.printable import printable


class DserverfsError(Exception):
    """Something dserverfs knows how to report in one line."""

    def __init__(self, message: str, *, uri: str | None = None, status: int | None = None) -> None:
        super().__init__(printable(message))
        self.uri = uri
        self.status = status


class UsageError(DserverfsError):
    """A request cannot be fulfilled as it is; the message says how it can."""


class NameTooLong(UsageError):
    """A path is longer than what the store can keep of it."""


class NotUTF8(UsageError):
    """A name that cannot be told to dserver or to dtool."""


class CannotHold(UsageError):
    """A symbolic link, a device, a socket: datasets hold plain files."""


class DaemonSilent(UsageError):
    """The daemon of a mount is gone, stopped or cannot be reached: nothing was done."""


class DaemonStopped(DaemonSilent):
    """The daemon of a mount is there, and stopped: it answers when it is let go on."""


class NotFound(DserverfsError):
    """The dataset, item or name does not exist (any more): drop what was kept of it.

    Raised only on sure knowledge: of a cached listing, or of the server itself for its routes.
    A proxy's 404 is Unreachable, a store's NotStored.
    """


class StaleInode(NotFound):
    """Nobody knows any more what an inode number stood for; its name may be there."""


class PermissionDenied(DserverfsError):
    """The server knows the user and refuses."""


class NotAuthenticated(PermissionDenied):
    """The token is missing, expired, malformed, or of a user the server does not know."""


class Unreachable(DserverfsError):
    """No connection, or none that carries an answer; trying later may help."""

    lasting = False  # it has been so for a while: there is no use in trying again at once


class NotConnected(Unreachable):
    """No connection could be made, so that nothing was asked."""


class Busy(Unreachable):
    """It cannot now; it may say for how long."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0, **known: Any) -> None:
        super().__init__(message, **known)
        self.retry_after_s = retry_after_s


class NotTheServer(Unreachable):
    """A redirect, where no token goes, or a page: of a proxy, a login, or a wrong address."""


class DeadlineExceeded(Unreachable):
    """The time for the whole operation is over."""


class Stalled(DeadlineExceeded):
    """A connection was given up because nothing came by it."""


class ProtocolError(DserverfsError):
    """The answer is not of the documented form; trying again does not help."""


class UnusableAnswer(ProtocolError):
    """A fault of the server, or a page of a proxy; a second answer may be right."""


class IntegrityError(DserverfsError):
    """Bytes differ from what the manifest promises; they were not handed out."""


class NotStored(DserverfsError):
    """The store has no object under a URL that was signed for it: something is lost."""


class LocalDiskError(DserverfsError):
    """A file of our own cannot be used; what the disk said of it is nothing about the user's."""


class Garbled(IntegrityError):
    """An answer is not the bytes that were asked for; a second one may be."""


class StorageRefused(DserverfsError):
    """The store answered 400, 401 or 403: the URL may have expired; resolve a new one, once."""

    def __init__(self, message: str, *, code: str = "", **known: Any) -> None:
        super().__init__(message, **known)
        self.code = code  # the store's own, "AccessDenied"


class Unsupported(DserverfsError):
    """This server cannot do it; another one may."""


class Conflict(DserverfsError):
    """It exists already, or another process or user holds it."""


class NameTaken(Conflict):
    """There is a dataset of that name; choose another one."""


class ChangedMeanwhile(Conflict):
    """The content to be replaced is not the one that was read: read it again, and change that."""


class Frozen(DserverfsError):
    """It is frozen, or about to be: its items cannot change any more."""


class TooManyOpen(DserverfsError):
    """Programs have as many files open as the daemon can hold open for them."""


class TooLarge(DserverfsError):
    """An item has more bytes than this server and its store take; nothing was sent."""


class ItemChanged(DserverfsError):
    """A local file changed after it was described or hashed: describe it again, then retry."""

    def __init__(self, message: str, *, relpath: str = "", **known: Any) -> None:
        super().__init__(message, **known)
        self.relpath = relpath


class Cancelled(DserverfsError):
    """The caller's stop was set; what was stored stays stored, and it can be called again."""
