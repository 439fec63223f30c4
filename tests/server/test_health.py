"""/health/ready: what does not answer, or soon will not, in time and to whom it may be told."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dservercore
import pytest

from dserverfs.server.routes import health
from dserverfs.server.routes.health import Health
from dserverfs.server.store.stores import Stores
from tests.support import postgresql
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle


@pytest.fixture
def client(server: ServerHandle, tmp_path: Path) -> Iterator[AppClient]:
    client = AppClient(server, tmp_path)
    yield client
    client.close()


@pytest.fixture
def token(client: AppClient, tmp_path: Path) -> str:
    return (tmp_path / "metrics_token").read_text().strip()


def ready(client: AppClient, token: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = client.request("GET", "/health/ready", username=None, headers=headers)
    return answer.status_code, answer.json


@pytest.mark.expects_log("not ready: database: OperationalError: unable to open")
def test_database_that_is_away_is_told(client: AppClient, token: str, tmp_path: Path) -> None:
    if postgresql.is_wanted():
        pytest.skip("a PostgreSQL that is away is in test_database_trouble.py")
    with client.app.app_context():
        dservercore.sql_db.engine.dispose()
    database = tmp_path / "dserver.sqlite"
    database.rename(tmp_path / "away")
    database.mkdir()

    status, told = ready(client)
    reason = ready(client, token)[1]["failing"]["database"]

    assert (status, told) == (503, {"status": "not ready", "failing": ["database"]})
    assert reason == "OperationalError: unable to open database file"
    assert client.request("GET", "/health", username=None).status_code == 200
    metrics = client.app.test_client().get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert metrics.status_code == 200
    assert "dserverfs_requests_total" in metrics.text


@pytest.mark.parametrize(
    ("ahead_s", "said"), [(600, "(599|60[01]) s ahead of"), (-600, "behind"), (5, "")]
)
def test_clock_that_is_wrong_is_a_warning(
    client: AppClient, token: str, monkeypatch: pytest.MonkeyPatch, ahead_s: float, said: str
) -> None:
    plain = time.time
    monkeypatch.setattr(time, "time", lambda: plain() + ahead_s)

    with client.app.app_context():
        found = Health(client.stores, "").look(dservercore.sql_db.engine)

    assert found.failing == {}
    assert bool(found.warnings) == bool(said)
    assert re.search(said, "".join(found.warnings))


def test_store_that_hangs_is_asked_once_at_a_time(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    answers = threading.Event()

    def date(bucket: str) -> str:
        asked.append(bucket)
        answers.wait(60)
        return ""

    monkeypatch.setattr(client.store, "date", date)
    monkeypatch.setattr(health, "CHECK_S", 0.1)
    looking = Health(Stores(client.store, lambda bucket: None), "")

    found = [looking.look_at_stores([client.base_uri]) for _ in range(5)]
    answers.set()

    assert [each.failing for each in found] == [{client.base_uri: "no answer within 0.1 s"}] * 5
    assert len(asked) == 1


@pytest.mark.expects_log("not ready: .* the store does not answer")
def test_nobody_hears_of_buckets_or_figures_without_the_operator_s_token(
    client: AppClient, token: str
) -> None:
    client.store_away()

    told = client.request("GET", "/health/ready", username="grumpy")

    assert told.json == {"status": "not ready", "failing": ["store"]}
    assert client.base_uri in ready(client, token)[1]["failing"]
    for sent in ("", "Bearer ", f"Bearer {token[:-1]}", f"Basic {token}", f"Bearer {token} x"):
        refused = client.request("GET", "/metrics", username=None, headers={"Authorization": sent})
        assert refused.status_code == 401
        assert "dserverfs_requests" not in refused.text
