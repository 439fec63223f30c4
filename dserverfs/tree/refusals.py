"""How a file system says no to a request although nothing is wrong.

Used by the file system; the mount has an errno for each, and logs none of them.
"""

from __future__ import annotations

from dserverfs.base.errors import DserverfsError


class Refused(DserverfsError):
    """A program asked for what this file system, or any, does not do."""


class NotADirectory(Refused):
    """A file cannot be listed."""


class NotEmpty(Refused):
    """A dataset that holds something is not removed like a directory."""


class NotPermitted(Refused):
    """No file of that kind can be made there."""


class OnlyTried(NotPermitted):
    """A program sees whether it can have a link, and goes on without."""


class AcrossDatasets(Refused):
    """A name cannot move to another dataset; programs copy then."""


class NotOpenForWriting(Refused):
    """The handle is for reading."""


class Invalid(Refused):
    """The request makes no sense for that file."""


class NoAttribute(Refused):
    """There is no extended attribute of that name."""


class NoAttributes(Refused):
    """This mount has no extended attributes: it need not be asked again."""


class NotSettable(Refused):
    """An extended attribute of that name cannot be set there."""


class StillGoingOn(Refused):
    """It has begun, and goes on by itself."""
