"""Faults planted into the code under test, which the simulation has to find.

Each is one that a careless change could make. A simulation that does not see them is of no
use; `--plant NAME` runs with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _unsynced() -> None:
    """Small files are renamed before they are on the disk."""
    from dserverfs.base import durable_files

    module: Any = durable_files
    module.sync_open = lambda file: file.flush()
    module.sync_directory = lambda path: None


def _rearmed() -> None:
    """A dataset that was open when its daemon died is frozen by the next one."""
    from dserverfs.writing.staging.dataset import StagedDataset
    from dserverfs.writing.staging.states import State

    cls: Any = StagedDataset
    cls.disarm = lambda self, reason: None
    owned = cls.own

    def own(self: Any) -> None:
        owned(self)
        if self._record.state is State.OPEN:
            self._disowned = self.disown
            self.disown = lambda: None

    cls.own = own

    from dserverfs.writing.freezer import Freezer

    freezer: Any = Freezer
    resumed = freezer._take_over

    def take_over(self: Any, staged: Any) -> bool:
        result: bool = resumed(self, staged)
        self.watch(staged)
        return result

    freezer._take_over = take_over


def _unverified() -> None:
    """Bytes are taken for an item's without a look at its hash."""
    from dserverfs.reading import block_hashing, cache_lookup, item_prefetch

    for module in (cache_lookup, block_hashing, item_prefetch):
        loose: Any = module
        if hasattr(loose, "check_whole"):
            loose.check_whole = lambda content, data: True


def _by_uuid() -> None:
    """A dataset's manifest is kept by its uuid, which a copy has, too."""
    from dserverfs.catalogue.manifests import Manifests

    cls: Any = Manifests
    cls._path = lambda self, dataset, suffix: self._directory / f"{dataset.uuid}.{suffix}"


def _uncompared() -> None:
    """A README is sent without a look at what the server has by now."""
    from dserverfs.remote.metadata_api import MetadataWrites

    cls: Any = MetadataWrites
    cls._is_there = lambda self, dataset, what, now, wanted, read: now == wanted


def _unlocked() -> None:
    """A staged dataset is taken for one's own though another process has it."""
    from dserverfs.base import locks

    module: Any = locks
    module.try_lock = lambda fd: True


PLANTED: dict[str, Callable[[], None]] = {
    "unsynced": _unsynced,
    "rearmed": _rearmed,
    "unverified": _unverified,
    "by-uuid": _by_uuid,
    "uncompared": _uncompared,
    "unlocked": _unlocked,
}
