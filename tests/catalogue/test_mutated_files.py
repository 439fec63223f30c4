"""Whatever is found on the disk or in a request, only errors of ours come of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dserverfs.base.errors import DserverfsError, Unreachable
from dserverfs.base.limits import parse_json
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.locks import OwnerLock
from dserverfs.base.model import BackendURI, Dataset, DserverURI, User, split_base_uri
from dserverfs.base.sealed_files import sealed_content, write_sealed
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.remote.api import Metadata, Resolver
from dserverfs.server.database.upload_request import UploadRequest
from dserverfs.settings import Settings
from dserverfs.writing.edits import journal
from dserverfs.writing.staging import states
from dserverfs.writing.staging.survey import survey
from tests.remote.test_mutated_input import BASE_URI, DATASET, UPLOAD_BODY
from tests.support.dtool_datasets import make_dataset
from tests.support.mutations import mutated, only_errors_of_ours

RECORD = states.Record("id", "server", BASE_URI, "name", "me", 1.5)
NOTE = journal.Note(DATASET, "README.yml", True, 1.5)
TEXTS: dict[str, tuple[Any, Callable[[bytes], object]]] = {
    "state": (
        json.loads(RECORD.to_json()),
        lambda content: states.Record.from_json(content.decode("utf-8", "replace")),
    ),
    "note": (
        json.loads(NOTE.to_json()),
        lambda content: journal.Note.from_json(content.decode("utf-8", "replace")),
    ),
    "user": (
        {"username": "me", "search_permissions_on_base_uris": [BASE_URI]},
        lambda content: User.from_json(parse_json(content, "it")),
    ),
    "upload request": (
        UPLOAD_BODY,
        lambda content: UploadRequest.parse(parse_json(content, "it"), max_item_bytes=1 << 40),
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
@settings(max_examples=75, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_a_text(kind: str, data: st.DataObject) -> None:
    value, read = TEXTS[kind]

    with only_errors_of_ours():
        read(data.draw(mutated(value)))


def test_fields_of_a_record_have_their_types() -> None:
    values = json.loads(RECORD.to_json())
    wrong: list[Any] = [[], {}, None, True, 10**400]
    for key in sorted(set(values) - {"format", "reason", "uuid", "armed", "manual"}):
        for value in wrong:
            with pytest.raises(DserverfsError):
                states.Record.from_json(json.dumps({**values, key: value}))


@settings(max_examples=30)
@given(text=st.text() | st.text("dserver:/[]@%.s3uid-0123456789abc", max_size=80))
def test_only_errors_of_ours_come_of_a_uri(text: str) -> None:
    for read in (lambda: DserverURI.parse(text), lambda: split_base_uri(text)):
        with only_errors_of_ours():
            str(read())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("frozen"), "frozen", {"a": b"1", "b/c": b"2"})


FILES = [".dtool/dtool", ".dtool/manifest.json", ".dtool/annotations/answer.json"]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_a_datasets_files(
    frozen: Path, name: str, data: st.DataObject
) -> None:
    path = frozen / name
    before = path.read_bytes()
    path.write_bytes(data.draw(mutated(json.loads(before))))
    try:
        for read in (LocalDataset.read, survey):
            with only_errors_of_ours():
                read(frozen)
    finally:
        path.write_bytes(before)


@settings(max_examples=30, deadline=None)
@given(
    content=mutated({"DSERVER_TOKEN": "x", "DSERVER_PROTOCOL": "http", "DSERVER_URL": "http://h"})
)
def test_only_errors_of_ours_come_of_the_configuration(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("config") / "dtool.json"
    path.write_bytes(content)
    with only_errors_of_ours():
        found = Settings.load({}, path=path)
        found.base_url("h")
        found.token("h")
        found.trust("h")


@settings(max_examples=30, deadline=None)
@given(content=mutated({"pid": 1, "host": "h", "machine": "m", "boot": "b"}))
def test_lock_file_with_anything_in_it_is_read(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lock") / "lock"
    path.write_bytes(content)
    lock = OwnerLock(path)

    assert lock.owner().encode("utf-8").decode().isprintable()
    is_ours = lock.acquire()
    assert lock.held is is_ours
    lock.release()
    assert not lock.held


class Saying:
    """A resolver that answers until the server is away."""

    server_url = "http://server"

    def __init__(self) -> None:
        self.is_away = False

    def token_subject(self) -> str:
        return "me"

    def _say(self, answer: Any) -> Any:
        if self.is_away:
            raise Unreachable("away")
        return answer

    def user(self) -> User:
        return cast("User", self._say(User("me", False, (BASE_URI,), ())))

    def datasets(self, base_uri: str) -> list[Dataset]:
        return cast("list[Dataset]", self._say([DATASET]))

    def readme(self, dataset: Dataset) -> bytes:
        return cast("bytes", self._say(b"readme"))

    def metadata(self, dataset: Dataset) -> Metadata:
        return cast("Metadata", self._say(Metadata(b"{}", ("t",), {"o": b"{}"}, {"a": b"1"})))


KEPT: dict[str, Callable[[KeptAnswers], object]] = {
    "user": lambda answers: answers.user(),
    "datasets": lambda answers: answers.datasets(BASE_URI),
    "readme": lambda answers: answers.readme(DATASET),
    "metadata": lambda answers: answers.metadata(DATASET),
}


@pytest.mark.parametrize("kind", KEPT)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_only_errors_of_ours_come_of_a_kept_answer(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("kept")
    resolver = Saying()
    answers = KeptAnswers(cast("Resolver", resolver), directory)
    before = KEPT[kind](answers)
    resolver.is_away = True
    assert KEPT[kind](answers) == before
    (path,) = directory.glob("*.answer")
    kept = json.loads(sealed_content(path) or b"")
    changed = data.draw(mutated(kept["value"]))
    about = json.dumps(kept["about"]).encode()
    write_sealed(path, b'{"about":%b,"value":%b}' % (about, changed))

    with only_errors_of_ours():
        found = KEPT[kind](answers)
        if isinstance(found, Metadata):
            "".join(found.tags).encode()


@pytest.mark.parametrize("kind", KEPT)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_answer_is_never_shown_as_another(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("kept")
    resolver = Saying()
    answers = KeptAnswers(cast("Resolver", resolver), directory)
    before = KEPT[kind](answers)
    (path,) = directory.glob("*.answer")
    whole = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])

    resolver.is_away = True
    with pytest.raises(Unreachable):
        KEPT[kind](answers)

    resolver.is_away = False
    assert KEPT[kind](answers) == before
    resolver.is_away = True
    assert KEPT[kind](answers) == before, "it is kept again"


def test_answer_of_another_question_is_not_shown(tmp_path: Path) -> None:
    resolver = Saying()
    answers = KeptAnswers(cast("Resolver", resolver), tmp_path)
    answers.readme(DATASET)
    (readme,) = tmp_path.glob("*.answer")
    other = replace(DATASET, uri=BackendURI(f"{DATASET.base_uri}/other"))
    answers.readme(other)
    (second,) = {*tmp_path.glob("*.answer")} - {readme}

    readme.replace(second)

    resolver.is_away = True
    with pytest.raises(Unreachable):
        answers.readme(other)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_in_the_place_of_an_answer_gives_way(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    resolver = Saying()
    answers = KeptAnswers(cast("Resolver", resolver), tmp_path)
    answers.readme(DATASET)
    (path,) = tmp_path.glob("*.answer")
    path.unlink()
    make(path)

    resolver.is_away = True
    with pytest.raises(Unreachable):
        answers.readme(DATASET)

    resolver.is_away = False
    answers.readme(DATASET)
    resolver.is_away = True
    assert answers.readme(DATASET) == b"readme"
