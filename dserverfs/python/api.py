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

__all__ = [
    "Conflict",
    "Dataset",
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
]
