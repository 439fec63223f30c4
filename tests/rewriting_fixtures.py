"""The fixture of tests that rewrite files; beside their helpers, which tests import."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import serving
from tests.rewriting import BEFORE, CONTENTS, DATASETS
from tests.serving import ServerHandle


@pytest.fixture(scope="module")
def uuids(server: ServerHandle) -> Iterator[str]:
    """Uuids of datasets that nobody has changed yet, in a base URI of their own."""
    made = []
    for number in range(DATASETS):
        uuid = serving.new_uuid()
        name = f"edited-{number}"
        serving.upload(server, CONTENTS, readme=BEFORE.encode(), uuid=uuid, name=name)
        made.append(uuid)
    return iter(made)
