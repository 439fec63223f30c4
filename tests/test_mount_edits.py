"""Changing frozen datasets in a real mount, as editors and dtool do."""

from __future__ import annotations

import json
import os
import subprocess
import uuid as uuid_module
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import serving
from tests.accounts import Account
from tests.mounting import mounted
from tests.serving import ServerHandle

CONTENTS = {"hello.txt": b"hello\n", "sub/other": b"x"}
README = b"---\ndescription: before\n"


@pytest.fixture(scope="module")
def base(fuse: None, current_user: Account, server: ServerHandle, token: str) -> Iterator[Path]:
    with mounted(current_user, server.base_uri, token, "--log-level", "debug") as path:
        yield path


@pytest.fixture
def dataset(base: Path, server: ServerHandle, request: pytest.FixtureRequest) -> Path:
    """A frozen dataset that the mount shows."""
    uuid = str(uuid_module.uuid4())
    serving.upload(server, CONTENTS, readme=README, uuid=uuid, name=request.node.name[:70])
    return base / ".uuid" / uuid


def test_try(dataset: Path, current_user: Account, server: ServerHandle) -> None:
    print(os.listdir(dataset.parent.parent))
