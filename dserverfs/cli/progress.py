"""Progress on a terminal: one line that is overwritten; nothing where there is no terminal."""

from __future__ import annotations

import sys
from typing import TextIO

from dserverfs.base.printable import printable
from dserverfs.base.progress import Progress

_UNITS = ("KiB", "MiB", "GiB", "TiB")


class ProgressLine:
    """A line on standard error; use as a context manager, which takes it away at the end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._length = 0

    def show(self, text: str) -> None:
        """Show `text` in place of what was there."""
        if self._is_shown:
            text = printable(text)
            self._stream.write(f"\r{text:<{self._length}}")
            self._stream.flush()
            self._length = len(text)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_shown and self._length:
            self._stream.write(f"\r{'':<{self._length}}\r")
            self._stream.flush()


def text_of(progress: Progress) -> str:
    done, total = size(progress.bytes_done), size(progress.bytes_total)
    return f"{done} of {total}, {progress.items_done} of {progress.items_total} items"


def size(size_in_bytes: float) -> str:
    """Return a size as people read it."""
    if size_in_bytes < 1024:
        return f"{size_in_bytes:.0f} B"
    for unit in _UNITS:
        size_in_bytes /= 1024
        if size_in_bytes < 1024 or unit == _UNITS[-1]:
            return f"{size_in_bytes:.1f} {unit}"
    raise AssertionError  # the last unit takes everything
