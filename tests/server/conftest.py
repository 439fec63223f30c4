"""Fixtures for tests of the server."""

from __future__ import annotations

import pytest

from tests.support import postgresql


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Each database that a server may have: the address of a new one, None for SQLite."""
    if request.param == "postgresql":
        return postgresql.shared.get().new_database()
    if postgresql.is_wanted():
        pytest.skip("this run is about PostgreSQL")
    return None
