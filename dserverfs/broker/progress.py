"""The progress of an upload, on a terminal, in the way dtool shows progress."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

from dserverfs.base.progress import Progress
from dserverfs.writing.freeze_job import FreezeResult

LOOK_S = 0.2


def watch(job: Future[FreezeResult], progress: Callable[[], Progress | None]) -> None:
    """Return when `job` is done; until then show its progress, if stderr is a terminal.

    dtoolcore hands its progress bar to no broker, and has filled it when the
    upload begins.
    """
    click = sys.modules.get("click")
    if click is None or not sys.stderr.isatty():
        wait_for([job])
        return
    with contextlib.ExitStack() as stack:
        bar: Any = None
        while not job.done():
            wait_for([job], timeout=LOOK_S)
            known = progress()
            if known is None:
                continue
            if bar is None:
                print(file=sys.stderr)  # dtool's own bar is in this line
                bar = stack.enter_context(
                    click.progressbar(length=known.bytes_total, label="Uploading", file=sys.stderr)
                )
            bar.update(known.bytes_done - bar.pos)
