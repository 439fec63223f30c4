"""fsspec's own tests of file systems, on a dataset that is being made.

They write, copy and delete, which no frozen dataset allows; what they read is read in
test_filesystem from frozen ones as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from fsspec.tests import abstract

from dserverfs.python.filesystem import DserverFileSystem
from tests.support.programs import Programs

pytest_plugins = ["tests.support.program_fixtures"]


@pytest.fixture(scope="module")
def new_data(programs: Programs) -> Iterator[str]:
    """The directory of the items of a dataset that is made, and not frozen."""
    new = DserverFileSystem().new_dataset(f"{programs.path}/fsspec-suites-{uuid.uuid4()}")
    yield f"{programs.path}/{new.name}/data"
    new.discard()


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """What the suites ask for."""

    @pytest.fixture
    def fs(self, programs: Programs) -> DserverFileSystem:
        return DserverFileSystem()

    @pytest.fixture
    def fs_path(self, fs: DserverFileSystem, new_data: str) -> str:
        path = f"{new_data}/{uuid.uuid4()}"
        fs.mkdir(path)
        return path


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    """Copies in a dataset."""


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    """Copies out of it."""


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    """Copies into it."""


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    """Open files."""


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    """Whole contents."""
