"""A frozen dataset's administrative metadata, as a dictionary that asks for one value late.

A listing says all of it but the version of dtoolcore, which is in the manifest: to ask
for that of each dataset of a listing would be a request for each. So it is asked for
when it is read, alone or with all others. dtoolcore wants a real dict, which it changes
and writes as JSON.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

VERSION = "dtoolcore_version"
# Methods that read, or change, more than the one value that they name. Not __repr__: dtoolcore
# formats each for its log.
_OF_ALL = (
    *("__delitem__", "__eq__", "__iter__", "__len__", "__ne__", "__or__"),
    *("__reversed__", "__ror__", "clear", "copy", "items", "keys", "pop", "popitem"),
    *("setdefault", "values"),
)


class AdminMetadata(dict[str, Any]):
    """Looking for the version, or at the whole, may block and raises what `find_version` does."""

    def __init__(self, known: dict[str, Any], find_version: Callable[[], str | None]) -> None:
        """`find_version` returns None for a dataset that does not say."""
        super().__init__(known)
        self._find_version: Callable[[], str | None] | None = find_version

    def complete(self) -> None:
        """Be as any other dictionary from now on."""
        if self._find_version is not None and not super().__contains__(VERSION):
            version = self._find_version()
            if version is not None:
                self[VERSION] = version
        self._find_version = None

    def __missing__(self, key: str) -> Any:
        if key == VERSION and self._find_version is not None:
            self.complete()
            return self[key]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        if key == VERSION:
            self.complete()
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def _once_complete(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: AdminMetadata, *args: Any) -> Any:
        self.complete()
        return method(self, *args)

    return wrapper


for _name in _OF_ALL:
    setattr(AdminMetadata, _name, _once_complete(getattr(dict, _name)))
