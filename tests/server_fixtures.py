"""The embedded server that the tests share; a module names this one in `pytest_plugins`."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.serving import ServerHandle, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    # At DEBUG, the level of the tests, they fill the report of a failure with a page per request.
    for name in ("botocore", "boto3", "dtoolcore", "dtool_s3"):
        logging.getLogger(name).setLevel(logging.INFO)
    with running_server(tmp_path_factory.mktemp("serve") / "data") as handle:
        yield handle
