"""Daemons that are killed behind a channel: the mount lives on, and nothing in it is another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dserverfs.base.items import BLOCK_SIZE
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import Remountable, remountable
from tests.support.mounts import publish
from tests.support.servers import ServerHandle
from tests.support.successors import kill_daemon

SIZE = 5 * BLOCK_SIZE + 4321
CONTENT = content_of("survival", SIZE)


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("survival")
    items = {"large": CONTENT, "small": b"small\n", **{f"many/{n}": b"x" * n for n in range(700)}}
    local = make_dataset(directory, "survives", items)
    return publish(server.base_uri, token, directory / "cache", local)[0]


@pytest.fixture
def mount(fuse: None, current_user: Account, token: str, uri: str) -> Iterator[Remountable]:
    with remountable(current_user, uri, {"DSERVER_TOKEN": token}) as made:
        made.mount("--channel", "on")
        yield made


def test_a_dead_daemon_is_followed_by_another_one(mount: Remountable) -> None:
    assert (mount.path / "data/small").read_bytes() == b"small\n"
    kill_daemon(mount)
    assert (mount.path / "data/large").read_bytes() == CONTENT
