"""The log of a mount: where it is, who can read it, and the form of its lines.

Used by the command `mount`, in the process that serves. On disk: the file and one before it,
each up to MAX_LOG_BYTES, of their owner alone.
"""

from __future__ import annotations

import hashlib
import logging
import logging.handlers
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.base.errors import UsageError
from dserverfs.base.printable import PrintableFormatter

if TYPE_CHECKING:
    from io import TextIOWrapper

MAX_LOG_BYTES = 10 * 1024 * 1024
MAX_LOG_NAME_BYTES = 200  # beside what is added to it, of the 255 of a file's name


def name_of(mountpoint: Path) -> str:
    """Return the name of the log of a mount, below the directory of logs."""
    name = os.fsencode(str(mountpoint).replace("/", "-"))
    if len(name) > MAX_LOG_NAME_BYTES:  # another mount point may end alike
        name = hashlib.sha256(name).hexdigest()[:16].encode() + name[-MAX_LOG_NAME_BYTES:]
    # A character that was cut, and one that no text can hold, in its readable form.
    return f"mount{os.fsdecode(name).encode('utf-8', 'replace').decode()}.log"


class _PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that nobody else can read, whatever the umask is and whoever made the file."""

    def _open(self) -> TextIOWrapper:
        from dserverfs.base.local_files import make_file_private

        make_file_private(Path(self.baseFilename))
        return super()._open()


def log_to(path: Path | None, level: str) -> None:
    """Send the log of this process to a file, or to standard error; raises UsageError."""
    from dserverfs.base.local_files import make_private

    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        try:
            make_private(path.parent)
            handler = _PrivateLog(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{path}: the log cannot be written: {error.strerror}; name another file with"
                " --log-file, or with XDG_STATE_HOME a directory for all of them"
            ) from error
    handler.setFormatter(
        PrintableFormatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # urllib3 logs whole URLs at DEBUG; a signed URL's query is a secret.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
