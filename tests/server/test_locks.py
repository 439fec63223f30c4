"""Locks between servers of one PostgreSQL, and what is done under them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dservercore.extensions import sql_db
from dservercore.sql_models import Dataset
from sqlalchemy import text

from dserverfs.base.errors import Busy
from dserverfs.server.database import changes, locks
from dserverfs.server.routes.answers import HANDLED, told
from tests.support import postgresql
from tests.support.server_app import AppClient
from tests.support.servers import ServerHandle, encoded


@pytest.fixture
def two(server: ServerHandle, tmp_path: Path) -> Iterator[list[AppClient]]:
    """Two servers of one database and one store."""
    first = AppClient(server, tmp_path / "1", database=postgresql.shared.get().new_database())
    second = AppClient(server, tmp_path / "2", beside=first)
    yield [first, second]
    for client in (second, first):
        client.close()


def at_once(*tasks: Callable[[], object]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_servers_of_one_database_take_turns(two: list[AppClient]) -> None:
    first, second = two
    with first.app.app_context(), locks.holding(locks.UPLOAD, "x"), second.app.app_context():
        lock = locks.holding(locks.UPLOAD, "x", wait_s=0.05)
        with pytest.raises(Busy, match="at work on upload x"), lock:
            pass
        with locks.holding_if_free(locks.UPLOAD, "x") as is_held:
            assert not is_held
        with locks.holding(locks.UPLOAD, "y"), locks.holding(locks.ITEM, "x"):
            pass

    with second.app.app_context(), locks.holding_if_free(locks.UPLOAD, "x") as is_held:
        assert is_held


def test_lock_whose_connection_is_lost_is_known_to_be_lost(
    two: list[AppClient],
) -> None:
    first, second = two
    with first.app.app_context(), locks.holding(locks.UPLOAD, "x") as held:
        held.require()
        address = first.settings.database()
        assert address is not None
        postgresql.shared.get().end_connections(address)
        with second.app.app_context(), locks.holding(locks.UPLOAD, "x", wait_s=5):
            pass
        with pytest.raises(Busy):
            held.require()


def test_change_that_another_server_has_overtaken_is_not_kept(
    two: list[AppClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of its lock: what is in the store counts, and who asked is told."""
    first, second = two
    uri = first.upload({"a": b"a"})

    def overtaken(where: Any, own: int) -> None:
        monkeypatch.undo()
        with second.app.app_context():
            changes.begin(uri)
        changes._end_one(where, own)

    monkeypatch.setattr(changes, "_end_one", overtaken)
    answer = first.request("PUT", f"/tags/{encoded(uri)}", {"tags": ["x"]})

    assert answer.status_code == 503
    assert second.get(f"/tags/{encoded(uri)}").json == {"tags": ["x"]}


def description_of(client: AppClient, uri: str) -> dict[str, Any]:
    """Return what a registration says of a dataset that is there."""
    facts = client.get(f"/uris/{encoded(uri)}").json
    return {
        **{key: facts[key] for key in ("uuid", "uri", "base_uri", "name", "creator_username")},
        **{"frozen_at": str(facts["frozen_at"]), "type": "dataset", "readme": "", "tags": ["t"]},
        **{"annotations": {}, "manifest": client.get(f"/manifests/{encoded(uri)}").json},
    }


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_dataset_is_not_registered_or_deleted_while_another_server_changes_it(
    two: list[AppClient], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    first, second = two
    uri = first.upload({"a": b"a"})
    body = description_of(first, uri)
    monkeypatch.setattr(locks, "holding", partial(locks.holding, wait_s=0.05))

    with second.app.app_context(), locks.holding(locks.CHANGE, uri):
        assert first.request(method, f"/uris/{encoded(uri)}", body).status_code == 503
        assert first.get(f"/uris/{encoded(uri)}").status_code == 200

    assert first.request(method, f"/uris/{encoded(uri)}", body).status_code == 200


def test_row_that_another_server_has_deleted_is_a_conflict(two: list[AppClient]) -> None:
    first, second = two
    uri = first.upload({"a": b"a"})
    with first.app.app_context():
        row = sql_db.session.query(Dataset).filter_by(uri=uri).one()
        sql_db.session.commit()
        assert second.request("DELETE", f"/uris/{encoded(uri)}").status_code == 200
        with pytest.raises(HANDLED) as caught:
            assert row.name
        assert told(caught.value).status == 409


def test_dataset_is_registered_by_two_servers_at_once(two: list[AppClient]) -> None:
    first = two[0]
    uri = first.upload({"a": b"a"})
    body = description_of(first, uri)
    answers: list[tuple[int, str]] = []

    def register(client: AppClient) -> None:
        for _ in range(5):
            answer = client.app.test_client().put(
                f"/uris/{encoded(uri)}",
                json=body,
                headers={"Authorization": f"Bearer {client.token('grumpy')}"},
            )
            answers.append((answer.status_code, answer.text))

    at_once(*(partial(register, client) for client in [*two, *two]))

    assert [each for each in answers if each[0] != 200] == []
    with first.app.app_context():
        for table in ("dataset", "dserverfs_search", "dserverfs_description"):
            count = text(f"SELECT count(*) FROM {table} WHERE uri = :uri")
            assert sql_db.session.execute(count, {"uri": uri}).scalar() == 1
        assert (
            sql_db.session.execute(text("SELECT count(*) FROM dserverfs_search_words")).scalar()
            == 2
        )


def test_rights_that_two_servers_give_at_once_are_all_there(two: list[AppClient]) -> None:
    names = [f"user-{number}" for number in range(6)]
    for name in names:
        two[0].add_user(name)

    def grant(client: AppClient, name: str) -> None:
        client.grant(name, search=True, register=True)

    at_once(*(partial(grant, two[number % 2], name) for number, name in enumerate(names)))

    for name in names:
        me = two[1].request("GET", "/me", username=name).json
        assert me["register_permissions_on_base_uris"] == [two[0].base_uri]
