"""Two gateways lead to a server and its store; each dies once while a mount is used."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.fault_world import (
    HURRIED,
    MIB,
    PARTS_FROM,
    Place,
    World,
    fault_world,
    wait_until,
)
from tests.support.front import Front
from tests.support.servers import ServerHandle
from tests.support.tcp_relay import Relay

READ = {
    **{f"small/{number:03}": random.randbytes(4000) for number in range(100)},
    **{f"large/{number}": random.randbytes(PARTS_FROM) for number in range(8)},
}
WRITTEN = {**READ, "in-parts": random.randbytes(3 * PARTS_FROM)}


class Gateway:
    """One address of the server, and one of the store."""

    def __init__(self, fronts: Mapping[str, Front]) -> None:
        targets = {side: ("127.0.0.1", front.port) for side, front in fronts.items()}
        self._targets = targets
        self.relays = {side: Relay(target) for side, target in targets.items()}
        self.ports = {side: relay.port for side, relay in self.relays.items()}

    @property
    def passed_bytes(self) -> int:
        return sum(relay.passed_bytes for relay in self.relays.values())

    def die(self) -> None:
        for relay in self.relays.values():
            relay.cut()

    def come_back(self) -> None:
        for side, target in self._targets.items():
            self.relays[side] = Relay(target, self.ports[side])

    def hang(self) -> None:
        for relay in self.relays.values():
            relay.hang()

    def go_on(self) -> None:
        for relay in self.relays.values():
            relay.go_on()


@pytest.fixture
def gateways() -> Iterator[list[Gateway]]:
    made: list[Gateway] = []
    yield made
    for gateway in made:
        gateway.die()


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    tmp_path: Path,
    gateways: list[Gateway],
) -> Iterator[World]:
    def give_addresses(fronts: Mapping[str, Front]) -> None:
        gateways.extend(Gateway(fronts) for _ in range(2))
        names = {
            f"localhost:{front.port}": [("127.0.0.1", each.ports[side]) for each in gateways]
            for side, front in fronts.items()
        }
        (tmp_path / "names").write_text(json.dumps(names))

    with fault_world(
        current_user, server, tmp_path, request.param, before_all=give_addresses
    ) as world:
        yield world


def copy_out(place: Place) -> None:
    """Copy all that there is, as a user does."""
    target = place.scratch("copied")
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["cp", "-r", place.dataset_path, target], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for relpath, content in READ.items():
        assert (target / "data" / relpath).read_bytes() == content, relpath


def make_and_freeze(place: Place) -> None:
    path = place.path / "made"
    for relpath, content in WRITTEN.items():
        (path / relpath).parent.mkdir(parents=True, exist_ok=True)
        (path / relpath).write_bytes(content)
    os.setxattr(path, "user.dserverfs.freeze", b"1")


def upload(place: Place) -> None:
    local = place.scratch("local")
    local.mkdir(parents=True)
    make_dataset(local, "uploaded", WRITTEN)
    own = {
        "DTOOL_CACHE_DIRECTORY": place.scratch("dtool-cache"),
        "DSERVER_CACHE_DIR": place.scratch("cache"),
        "DSERVER_STAGING_DIR": place.scratch("staging"),
    }
    place.world.jobs.run("dtool", "cp", "-q", local / "uploaded", place.uri, env=own)


# One that hangs is given up after ten seconds, or two in place of them.
@pytest.mark.parametrize(
    ("world", "fails", "is_back"),
    [({}, Gateway.die, Gateway.come_back), (HURRIED, Gateway.hang, Gateway.go_on)],
    indirect=["world"],
    ids=["dies", "hangs"],
)
def test_mount_upload_and_freeze_go_on_while_one_of_two_gateways_fails_and_comes_back(
    world: World,
    gateways: list[Gateway],
    fails: Callable[[Gateway], None],
    is_back: Callable[[Gateway], None],
) -> None:
    first, second = gateways
    work: list[Callable[[Place], None]] = [copy_out, make_and_freeze, upload]
    place = world.make_place("gateways", READ)
    with world.mounted() as daemon, ThreadPoolExecutor(len(work)) as pool:
        assert os.listdir(place.dataset_path / "data")
        running = [pool.submit(each, place) for each in work]
        wait_until(lambda: first.passed_bytes > 10 * MIB, "all is under way")
        fails(first)
        wait_until(lambda: second.passed_bytes > 10 * MIB, "the other one is used")
        is_back(first)
        before = first.passed_bytes
        fails(second)
        for each in running:
            each.result()

        assert first.passed_bytes > before
        assert daemon.poll() is None
        for name in ("made", "uploaded"):
            stored = world.registered(place.base_uri, name)
            assert stored is not None
            assert stored.keys() == WRITTEN.keys()
        assert place.world.state(place, "made") is None
