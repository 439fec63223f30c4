"""The signals that end a mount: noted from before there is one until its process ends.

Used by the daemon; the channel ignores them. By default a signal ends a process at once. That is
right before there is a mount. Later it would leave a dead one, as a second Ctrl-C would while the
first is being obeyed.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class EndSignals:
    """Those that have come."""

    def __init__(self) -> None:
        self.seen: list[signal.Signals] = []
        self._call: Callable[[], object] | None = None

    def hold(self) -> None:
        """Note them from now on, but for those that are ignored, as by nohup; for the main thread.

        A process that was started with them blocked is given those that came meanwhile.
        """
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)

    @contextlib.contextmanager
    def told(self, call: Callable[[], object]) -> Iterator[None]:
        """Call it when one comes, between any two lines of the main thread; now, if one has."""
        self._call = call
        try:
            if self.seen:
                call()
            yield
        finally:
            self._call = None

    def _note(self, number: int, _frame: object) -> None:
        self.seen.append(signal.Signals(number))
        if self._call is not None:
            self._call()
