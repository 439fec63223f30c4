"""Mounts of the server's base URI, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.mount_daemons import Remountable, remountable
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle


@pytest.fixture(scope="module")
def base(fuse: None, current_user: Account, server: ServerHandle, token: str) -> Iterator[Path]:
    """The base URI, in which datasets are frozen by command only."""
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as path:
        yield path


@pytest.fixture(scope="module")
def eager(fuse: None, current_user: Account, server: ServerHandle, token: str) -> Iterator[Path]:
    """The base URI, in which datasets are frozen soon after the last change."""
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "0.2") as path:
        yield path


@pytest.fixture
def mount(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> Iterator[Remountable]:
    """A mount of the base URI that a test makes, ends and makes again."""
    with remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token}) as mount:
        yield mount
