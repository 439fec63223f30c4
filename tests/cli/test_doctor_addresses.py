"""`dserverfs doctor` of a server or a store that has several addresses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.doctors import Doctor
from tests.support.servers import ServerHandle
from tests.support.several_addresses import (
    Place,
    black_hole,
    give_addresses,
    refusing,
    running_site,
    silent,
)

pytest_plugins = ["tests.support.doctor_fixtures"]


@pytest.mark.expects_log("DSERVER_TOKEN is sent to", "the token is sent unencrypted")
@pytest.mark.parametrize(
    ("side", "way"), [("server", refusing), ("server", silent), ("store", black_hole)]
)
def test_doctor_names_an_address_that_does_not_answer_beside_one_that_does(
    server: ServerHandle,
    doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    side: str,
    way: Callable[[], contextlib.AbstractContextManager[Place]],
) -> None:
    name = "gateways.invalid"
    with running_site(server, tmp_path, {"a": b"a" * 1000}, name=name) as site, way() as bad:
        places = {
            front.port: [bad, ("127.0.0.1", front.port)]
            if each == side
            else [("127.0.0.1", front.port)]
            for each, front in site.ways.items()
        }
        give_addresses(monkeypatch, places, name=name)
        found = doctor(
            f"{name}:{site.ways['server'].port}",
            *("--timeout", "6"),
            DSERVER_TOKEN=site.app.token("grumpy"),
            DSERVER_PROTOCOL="http",
        )

    checks = {"server": "addresses", "store": "addresses of the store"}
    wrong = found.of(checks.pop(side))
    (right,) = checks.values()
    assert found.status == 0, found.findings
    assert wrong["state"] == "warning"
    beginning = f"{name}: 1 of 2 addresses does not answer: {bad[0]}:{bad[1]} ("
    assert wrong["said"].startswith(beginning), wrong
    assert found.of(right)["state"] == "ok"
    assert found.of("throughput")["state"] == "ok"
