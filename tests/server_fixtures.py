"""The embedded server that the tests share; a module names this one in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import ServerHandle, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    with running_server(tmp_path_factory.mktemp("serve") / "data") as handle:
        yield handle
