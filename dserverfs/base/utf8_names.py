"""Names of files as UTF-8, whatever the locale is: so manifests and the kernel's FUSE have them.

Where a locale has another encoding, such as ISO-8859-1, Python reads a name of the disk as other
letters. A command is then run anew in Python's UTF-8 mode. A program that uses the package, such
as dtool, is not ours to run anew: it makes no dataset. No state.
"""

from __future__ import annotations

import sys

from dserverfs.base.errors import UsageError

OPTIONS = ("-X", "utf8")  # of Python


def are_read() -> bool:
    """Return whether this process reads names of files as UTF-8."""
    return sys.getfilesystemencoding().lower() in ("utf-8", "utf8")


def require() -> None:
    """Raise UsageError if a name of a staged file would become another one here."""
    if not are_read():
        raise UsageError(
            f"names of files are read as {sys.getfilesystemencoding()} here, and would be others"
            " in the dataset: set PYTHONUTF8=1, or a locale with UTF-8 such as LC_ALL=C.UTF-8"
        )
