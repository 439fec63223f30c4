"""dserverfs: the dtool datasets of a dserver as files, and as Python objects."""

from __future__ import annotations

TYPE_CHECKING = False  # but for type checkers; `typing` takes 5 ms
if TYPE_CHECKING:
    from dserverfs.python.api import (
        Conflict,
        Dataset,
        Datasets,
        DserverfsError,
        IntegrityError,
        Item,
        NewDataset,
        NotAuthenticated,
        NotFound,
        PermissionDenied,
        Unreachable,
        UsageError,
        create,
        open,
        search,
    )

__version__ = "0.1.0"

__all__ = [
    "Conflict",
    "Dataset",
    "Datasets",
    "DserverfsError",
    "IntegrityError",
    "Item",
    "NewDataset",
    "NotAuthenticated",
    "NotFound",
    "PermissionDenied",
    "Unreachable",
    "UsageError",
    "create",
    "open",
    "search",
]


def __getattr__(name: str) -> object:
    """Import what programs use when it is first used: no command needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dserverfs.python import api

    return getattr(api, name)
