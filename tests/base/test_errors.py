"""The tree of errors: each can be made, copied and told anew by who does not know its kind."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import click
import pytest

import dserverfs
from dserverfs.base.errors import Busy, DserverfsError, StorageRefused
from dserverfs.broker.problems import shown


def kinds(of: type[DserverfsError] = DserverfsError) -> Iterator[type[DserverfsError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


def every_kind() -> list[type[DserverfsError]]:
    """Return the kinds of all modules, wherever they are defined."""
    for module in pkgutil.walk_packages(dserverfs.__path__, "dserverfs."):
        if not module.name.endswith(("__main__", "die_with_parent")):
            importlib.import_module(module.name)
    found = [kind for kind in kinds() if kind.__module__.startswith("dserverfs.")]
    return [kind for kind in found if kind.__module__ != shown.__module__]


def _pickled(error: DserverfsError) -> DserverfsError:
    """Return what another process gets."""
    other = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert isinstance(other, DserverfsError)
    return other


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_error_of_any_kind_is_made_copied_pickled_and_shown_alike(
    kind: type[DserverfsError],
) -> None:
    error = kind("a message", uri="s3://b/u", status=503)
    error.__dict__["more"] = [1]

    shown_error = shown(error)
    for other in (copy.copy(error), _pickled(error), shown_error):
        assert isinstance(other, kind)
        assert str(other) == "a message"
        assert other.__dict__ == {**other.__dict__, **error.__dict__}
    assert isinstance(shown_error, click.ClickException)


def test_what_a_kind_carries_is_kept() -> None:
    busy = shown(Busy("busy", status=503, retry_after_s=7.0))
    refused = _pickled(StorageRefused("refused", status=403, code="AccessDenied"))

    assert isinstance(busy, Busy)
    assert busy.retry_after_s == 7.0
    assert isinstance(refused, StorageRefused)
    assert refused.code == "AccessDenied"
