"""Fixtures for tests of what Python programs use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dserverfs.base.model import DserverURI
from dserverfs.python.filesystem import DserverFileSystem
from tests.support.programs import Programs, forget
from tests.support.servers import ServerHandle


@pytest.fixture(scope="module")
def programs(
    server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Programs]:
    """Settings of programs for the tests of a file, also for processes that they start."""
    host = DserverURI.parse(server.base_uri).server
    directory = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSERVER_TOKEN", token)
        patch.setenv("DSERVER_URL", f"http://{host}")
        for name in ("DSERVER_CACHE_DIR", "DSERVER_STAGING_DIR", "DTOOL_CACHE_DIRECTORY"):
            patch.setenv(name, str(directory / name))
        forget()
        yield Programs(server.base_uri, host, directory)
        forget()


@pytest.fixture(scope="module")
def fs(programs: Programs) -> DserverFileSystem:
    return DserverFileSystem()
