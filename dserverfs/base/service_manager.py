"""What systemd, or another manager of services, is told of this process: sd_notify(3).

Used by the mount in the foreground and by the server. A manager that waits for it names a
socket in NOTIFY_SOCKET; without one nothing is told. Never fails: a service is not worth
less because nobody listens.
"""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 1.0  # a manager that does not read must not hold up the service


def ready(status: str) -> None:
    """Say that the service is up, and in one line what it does."""
    _tell(f"READY=1\nSTATUS={status}")


def stopping(status: str) -> None:
    """Say that the service is about to end, and in one line what it does until then."""
    _tell(f"STOPPING=1\nSTATUS={status}")


def _tell(message: str) -> None:
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):  # of another family, such as vsock of a virtual machine
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(SEND_TIMEOUT_S)
            manager.connect(address)
            manager.send(message.encode("utf-8", "replace"))
    except OSError as error:
        logger.info("%s: the manager of services is not told: %s", name, error)
