"""What `import dserverfs` gives programs."""

from __future__ import annotations

from dserverfs.base.errors import (
    Conflict,
    DserverfsError,
    IntegrityError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    Unreachable,
    UsageError,
)
from dserverfs.python.datasets import Dataset, Item
from dserverfs.python.datasets import open_dataset as open
from dserverfs.python.new_dataset import NewDataset, create
from dserverfs.python.search import Datasets, search

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
