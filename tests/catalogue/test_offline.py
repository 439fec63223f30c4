"""A mount whose server is away shows what it showed last, to the same user only."""

from __future__ import annotations

import errno
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from dserverfs.base.errors import NotAuthenticated, PermissionDenied, Unreachable
from dserverfs.base.model import UUID, Dataset
from dserverfs.catalogue.catalogue import Catalogue
from dserverfs.catalogue.offline import NOT_ASKED_S, SLOW_S, KeptAnswers
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.api import Resolver
from tests.support.accounts import Account
from tests.support.dtool_datasets import README, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.quirky_server import BASE_URI, Fault, QuirkyServer, says
from tests.support.servers import ServerHandle
from tests.support.tcp_relay import relay

pytest_plugins = ["tests.support.resolver_fixtures"]


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    items = {"seen": b"seen", "unseen": b"unseen"}
    local = make_dataset(tmp_path_factory.mktemp("local"), "kept", items)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


def test_second_mount_works_without_the_server_for_what_is_known(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    host, _, port = server.base_uri.split("/")[2].partition(":")
    cache = ("--cache-dir", str(current_user.home / "kept-cache"))
    expired = server.token_for(server.username, exp=int(time.time()) - 60)
    stranger = server.token_for("stranger")
    with relay(host, int(port)) as way:
        base = f"dserver://127.0.0.1:{way.port}/" + server.base_uri.split("/", 3)[3]
        with mounted(current_user, base, token, *cache) as path:
            assert (path / "kept/data/seen").read_bytes() == b"seen"
            assert (path / "kept/README.yml").read_text() == README
            assert os.listdir(path / "kept/.dtool/tags") == ["testing"]
        token_file = current_user.home / "token"
        token_file.write_text(token)
        by_file = {"DSERVER_TOKEN": "", "DSERVER_TOKEN_FILE": str(token_file)}
        with mounted(current_user, base, token, *cache, env=by_file) as path:
            assert sorted(os.listdir(path / "kept/data")) == ["seen", "unseen"]
            assert server_of(current_user, path / "kept") == {"answers": True}
            token_file.write_text(expired)
            assert (path / "kept/data/seen").read_bytes() == b"seen"
            with pytest.raises(PermissionError):
                (path / "kept/data/unseen").read_bytes()

        way.cut()

        with mounted(current_user, base, token, *cache) as path:
            assert (path / "kept/data/seen").read_bytes() == b"seen"
            assert (path / "kept/README.yml").read_text() == README
            assert os.listdir(path / "kept/.dtool/tags") == ["testing"]
            with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
                (path / "kept/data/unseen").read_bytes()
            away = server_of(current_user, path / "kept")
            listed = current_user.dserverfs("status").stdout
        assert (away["answers"], away["since_at"] <= time.time()) == (False, True)
        assert "cannot be reached" in away["reason"]
        assert "    the server has not answered since " in listed
        mountpoint = current_user.home / "stranger"
        mountpoint.mkdir()
        done = current_user.dserverfs(
            "mount", base, mountpoint, *cache, env={"DSERVER_TOKEN": stranger}
        )
        assert done.returncode == 1
        assert "cannot be reached" in done.stderr
        mountpoint.rmdir()


def server_of(account: Account, path: Path) -> dict[str, Any]:
    """Return what `status` says of the server of a path."""
    done = account.dserverfs("status", "--json", path, check=True)
    found: dict[str, Any] = json.loads(done.stdout)["server"]
    return found


def test_kept_answers_are_private(current_user: Account, uri: str) -> None:
    directory = current_user.home / "kept-cache/manifests"

    assert directory.stat().st_mode & 0o777 == 0o700
    for path in directory.iterdir():
        assert Path(path).stat().st_uid == os.geteuid()


def test_readmes_of_the_datasets_that_were_read_last_are_in_memory(
    quirky: QuirkyServer, resolver: Resolver, tmp_path: Path
) -> None:
    for number in range(3):
        quirky.add(f"{number:08d}-2222-3333-4444-555555555555", {"a": b"a"}, b"readme: 1\n")
    first, second, third = resolver.datasets(BASE_URI)
    catalogue = Catalogue(KeptAnswers(resolver, tmp_path), "server", tmp_path, max_datasets=2)

    for dataset in (first, second, first, third, first):
        assert loaded(partial(catalogue.readme, dataset)) == b"readme: 1\n"
    assert quirky.asked("^GET /readmes/") == 3
    assert loaded(lambda: catalogue.readme(second)) == b"readme: 1\n"

    assert quirky.asked("^GET /readmes/") == 4
    catalogue.close()


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize(
    "fault",
    [
        says(503),
        says(500),
        says(200, b"<html>Log in to this network</html>"),
        says(302, b"", Location="http://login.invalid/"),
        says(404, b"<html>not here</html>"),
    ],
)
def test_what_is_answered_in_the_server_s_place_takes_nothing_away(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path, fault: Fault
) -> None:
    answers = KeptAnswers(resolver, tmp_path)
    known = (answers.user(), answers.datasets(BASE_URI), answers.readme(dataset))

    quirky.faults = [fault] * 100

    assert (answers.user(), answers.datasets(BASE_URI), answers.readme(dataset)) == known
    assert answers.accepted_user() == known[0]


@pytest.mark.usefixtures("no_waits")
def test_server_that_hangs_is_waited_for_once_in_a_while(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path
) -> None:
    ahead_s = 0.0

    def hang(handler: object) -> None:
        nonlocal ahead_s
        ahead_s += SLOW_S
        handler.close_connection = True  # type: ignore[attr-defined]

    answers = KeptAnswers(resolver, tmp_path, lambda: ahead_s)
    known = (answers.user(), answers.readme(dataset))
    quirky.broken = {"": hang}

    assert answers.user() == known[0]
    asked = len(quirky.requests)
    assert (answers.user(), answers.readme(dataset)) == known
    assert len(quirky.requests) == asked
    with pytest.raises(Unreachable):
        answers.present_user()
    with pytest.raises(Unreachable):
        answers.metadata(dataset)  # there is none that could be told

    quirky.broken = {}
    ahead_s += NOT_ASKED_S
    asked = len(quirky.requests)
    assert answers.user() == known[0]
    assert len(quirky.requests) == asked + 1


@pytest.mark.usefixtures("no_waits")
def test_dataset_of_a_listing_is_found_while_the_server_is_away(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path
) -> None:
    answers = KeptAnswers(resolver, tmp_path)
    answers.datasets(BASE_URI)

    quirky.broken = {"": says(503)}

    assert answers.dataset(dataset.uuid, BASE_URI) == dataset
    with pytest.raises(Unreachable):
        answers.dataset(UUID("11111111-2222-3333-4444-555555555555"), BASE_URI)


@pytest.mark.usefixtures("no_waits")
def test_lost_right_takes_back_every_kept_answer_about_the_dataset(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path
) -> None:
    answers = KeptAnswers(resolver, tmp_path)
    answers.datasets(BASE_URI)
    answers.accepted_datasets_by_uuid(dataset.uuid)
    answers.dataset(dataset.uuid, BASE_URI)

    quirky.broken = {"": says(403)}
    with pytest.raises(PermissionDenied):
        answers.dataset(dataset.uuid, BASE_URI)
    quirky.broken = {"": says(503)}

    with pytest.raises(Unreachable):
        answers.dataset(dataset.uuid, BASE_URI)
    with pytest.raises(Unreachable):
        answers.datasets(BASE_URI)


@pytest.mark.usefixtures("no_waits")
def test_expired_token_is_refused_and_takes_nothing_back(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path
) -> None:
    answers = KeptAnswers(resolver, tmp_path)
    known = (answers.dataset(dataset.uuid, BASE_URI), answers.datasets(BASE_URI))

    quirky.broken = {"": says(401, {"msg": "Token has expired"})}

    with pytest.raises(NotAuthenticated):
        answers.dataset(dataset.uuid, BASE_URI)
    with pytest.raises(NotAuthenticated):
        answers.accepted_datasets(BASE_URI)
    assert answers.datasets(BASE_URI) == known[1]
    quirky.broken = {"": says(503)}
    assert answers.dataset(dataset.uuid, BASE_URI) == known[0]


@pytest.mark.usefixtures("no_waits")
def test_dataset_that_its_user_changed_is_still_known_while_the_server_is_away(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path
) -> None:
    answers = KeptAnswers(resolver, tmp_path)
    answers.dataset(dataset.uuid, BASE_URI)
    answers.readme(dataset)

    answers.forget(dataset)
    quirky.broken = {"": says(503)}

    assert answers.dataset(dataset.uuid, BASE_URI) == dataset
    with pytest.raises(Unreachable):
        answers.readme(dataset)

    quirky.broken = {}
    answers.drop(dataset)
    quirky.broken = {"": says(503)}
    with pytest.raises(Unreachable):
        answers.dataset(dataset.uuid, BASE_URI)


@pytest.mark.parametrize("whose", ["our own", "another process's"])
def test_answer_that_was_asked_for_before_a_change_and_came_after_it_is_none(
    quirky: QuirkyServer, resolver: Resolver, dataset: Dataset, tmp_path: Path, whose: str
) -> None:
    ours, other = (KeptAnswers(resolver, tmp_path, now_s=lambda: 100.0) for _ in range(2))
    asking = ours if whose == "our own" else other
    answered = resolver.readme

    def changed_meanwhile(of: Dataset) -> bytes:
        answer = answered(of)
        ours.forget(dataset)
        return answer

    with mock.patch.object(resolver, "readme", changed_meanwhile):
        asking.readme(dataset)

    assert ours.last_readme(dataset) is None
    quirky.broken = {"": says(503)}
    with pytest.raises(Unreachable):
        ours.readme(dataset)


def test_answer_on_the_disk_that_is_older_than_our_own_is_none(
    quirky: QuirkyServer, resolver: Resolver, tmp_path: Path
) -> None:
    quirky.add("11111111-1111-4111-8111-111111111111", {"a": b"a"})
    slow = KeptAnswers(resolver, tmp_path, now_s=lambda: 100.0)
    fast = KeptAnswers(resolver, tmp_path, now_s=lambda: 200.0)
    before = slow.datasets(BASE_URI)
    quirky.add("22222222-2222-4222-8222-222222222222", {"b": b"b"})
    now = fast.datasets(BASE_URI)
    slow._save(f"datasets {BASE_URI}", [], 100_000)  # what it asked for before came late

    quirky.faults = [says(503, {})] * 20

    assert len(now) == len(before) + 1
    with pytest.raises(Unreachable):
        fast.datasets(BASE_URI)
    assert KeptAnswers(resolver, tmp_path).datasets(BASE_URI) == []
