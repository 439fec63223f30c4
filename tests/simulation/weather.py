"""The weather of a run: when requests get lost, disks fail and the server says no, and how often.

Calm and bad weather take turns. What happens to one request or one write is drawn from the
run's own chance.
"""

from __future__ import annotations

import errno
import random

from tests.simulation.network import FINE, Fate
from tests.simulation.store import STORE, Request

_STATUSES = (429, 500, 502, 503, 504)
# Kinds of bad weather: the rate of each fate among requests.
_NETWORKS: tuple[dict[str, float], ...] = (
    {"lost": 0.1, "unheard": 0.1, "cut": 0.05},
    {"refused": 1.0},
    {"status": 0.3, "page": 0.1},
    {"silent": 0.15},
    {"garbled": 0.2},
    {"lost": 0.03, "unheard": 0.05, "status": 0.03, "cut": 0.03, "refused": 0.05, "garbled": 0.03},
)
_WRITES = frozenset({"open", "pwrite", "write", "ftruncate", "fsync", "rename", "mkdir", "link"})


class Weather:
    """The weather of now."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._network: dict[str, float] = {}
        self._only_store: bool | None = None
        self._disk_rate = 0.0
        self._disk_part = ""
        self.garbled: set[str] = set()  # keys of objects of which a wrong byte was sent

    def change(self) -> None:
        """Have another weather."""
        rng = self._rng
        self.clear()
        if rng.random() < 0.5:
            return
        if rng.random() < 0.8:
            self._network = rng.choice(_NETWORKS)
            self._only_store = rng.choice((None, True, False))
        if rng.random() < 0.3:
            self._disk_rate = rng.choice((0.02, 0.3, 1.0))
            self._disk_part = rng.choice(("/cache/", "/staging/", "/"))

    def clear(self) -> None:
        self._network, self._disk_rate, self._only_store = {}, 0.0, None

    def is_calm(self) -> bool:
        return not self._network and not self._disk_rate

    def fate_of(self, request: Request) -> Fate:
        rng = self._rng
        after_s = rng.random() * 0.02
        is_store = request.url.startswith(STORE)
        if not self._network or (self._only_store is not None and self._only_store != is_store):
            return Fate(after_s=after_s)
        draw = rng.random()
        for kind, rate in self._network.items():
            draw -= rate
            if draw >= 0:
                continue
            if kind == "garbled" and not (is_store and "/data/" in request.url):
                return FINE  # what has a hash to be compared with
            if kind == "garbled":
                self.garbled.add(request.url.partition("?")[0])
            if kind == "status":
                headers = {"Retry-After": "1"} if rng.random() < 0.3 else {}
                return Fate(kind, after_s, rng.choice(_STATUSES), headers)
            return Fate(kind, after_s)
        return Fate(after_s=rng.random() * rng.choice((0.02, 2.0)))

    def on_disk(self, kind: str, path: str) -> None:
        """Raise OSError if the disk does not take what is written just now."""
        if (
            self._disk_rate
            and kind in _WRITES
            and self._disk_part in path
            and self._rng.random() < self._disk_rate
        ):
            number = errno.ENOSPC if self._rng.random() < 0.7 else errno.EIO
            raise OSError(number, "simulated", path)
