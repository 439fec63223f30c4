"""The fixture of tests that rewrite files; beside their helpers, which tests import."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import servers
from tests.support.rewritten_files import BEFORE, CONTENTS, DATASETS
from tests.support.servers import ServerHandle


@pytest.fixture(scope="module")
def uuids(server: ServerHandle) -> Iterator[str]:
    """Uuids of datasets that nobody has changed yet, in a base URI of their own."""
    made = []
    for number in range(DATASETS):
        uuid = servers.new_uuid()
        name = f"edited-{number}"
        servers.upload(server, CONTENTS, readme=BEFORE.encode(), uuid=uuid, name=name)
        made.append(uuid)
    return iter(made)
