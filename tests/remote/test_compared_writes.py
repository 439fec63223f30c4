"""A server whose index and store are two sets: nothing that was not asked for vanishes."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid as uuid_module
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dserverfs.base.errors import ProtocolError, Unsupported, UsageError
from dserverfs.base.model import UUID, Dataset
from dserverfs.remote import signing
from dserverfs.remote.api import Resolver
from dserverfs.remote.dserver_http import ServerTransport
from dserverfs.remote.metadata_api import MetadataWrites
from dserverfs.remote.objects import Storage
from dserverfs.remote.routes import Routes
from dserverfs.remote.tokens import TokenSource
from tests.support.patience import LATE_S
from tests.support.quirky_changes import become, put_annotations, put_readme, put_tags
from tests.support.quirky_server import BASE_URI, CONTENTS, OTHERS, TOKEN, QuirkyServer

pytest_plugins = ["tests.support.resolver_fixtures"]

USER = "grumpy"


class Client:
    """One who changes things; what happens in its pauses is up to the test."""

    def __init__(self, url: str, storage: Storage) -> None:
        self.transport = ServerTransport(url, TokenSource(TOKEN, None))
        routes = Routes(self.transport)
        self.resolver = Resolver(self.transport, storage, routes)
        self.in_pause: list[Callable[[], None]] = []
        self.writes = MetadataWrites(routes, self.resolver, pause=self._pause)

    def _pause(self, pause_s: float) -> None:
        if self.in_pause:
            self.in_pause.pop(0)()


class World(NamedTuple):
    """The server, and two who use it."""

    quirky: QuirkyServer
    one: Client
    two: Client

    def add(self, **others: Any) -> Dataset:
        uuid = str(uuid_module.uuid4())
        self.quirky.add(uuid, CONTENTS, b"readme: 1\n", **json.loads(json.dumps(others)))
        self.quirky.entries[-1]["uploaded_by"] = USER
        return self.one.resolver.dataset_by_uuid(UUID(uuid), BASE_URI)

    def stored(self, dataset: Dataset) -> dict[str, Any]:
        """Return what the store has."""
        prefix = f"{dataset.uuid}/annotations/"
        return {
            "tags": set(self.quirky.described[dataset.uri]["stored"]["tags"]),
            "annotations": {
                key.removeprefix(prefix).removesuffix(".json"): json.loads(content)
                for key, content in self.quirky.objects.items()
                if key.startswith(prefix)
            },
            "readme": self.quirky.objects[f"{dataset.uuid}/README.yml"].decode(),
        }

    def indexed(self, dataset: Dataset) -> dict[str, Any]:
        described = self.quirky.described[dataset.uri]
        return {key: described[key] for key in ("tags", "annotations", "readme", "manifest")}

    def entry(self, dataset: Dataset) -> dict[str, Any]:
        return next(entry for entry in self.quirky.entries if entry["uri"] == dataset.uri)


@contextlib.contextmanager
def world_of(quirky: QuirkyServer, kind: str) -> Iterator[World]:
    become(quirky, kind)
    storage = Storage()
    made = World(quirky, Client(quirky.url, storage), Client(quirky.url, storage))
    yield made
    for client in (made.one, made.two):
        client.transport.close()
    storage.close()


@pytest.fixture(params=["master", "following"])
def world(request: pytest.FixtureRequest, quirky: QuirkyServer) -> Iterator[World]:
    with world_of(quirky, request.param) as made:
        yield made


@pytest.fixture
def lagging(quirky: QuirkyServer) -> Iterator[World]:
    """A world whose index never follows."""
    with world_of(quirky, "master") as made:
        yield made


# Each step: by whom ("us" or "dtool-s3"), what, which, and the value (None: taken away).
NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from([None, 1, 1.0, True, "1", [1], {"ü": None}])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["us", "us", "dtool-s3"]),
        st.sampled_from(["tags", "annotations", "readme"]),
        NAMES,
        VALUES,
    ),
    max_size=6,
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_store_has_what_was_put_and_nothing_else_vanishes(
    world: World, steps: list[tuple[str, str, str, Any]]
) -> None:
    dataset = world.add(tags=["orig"], annotations={"n": 5})
    expected: dict[str, Any] = {
        "tags": {"orig"},
        "annotations": {"n": 5},
        "readme": "readme: 1\n",
    }

    for who, kind, name, value in steps:
        if kind == "readme":
            expected["readme"] = f"readme: {name}\n"
        elif kind == "tags":
            expected["tags"] = expected["tags"] - {name} | (set() if value is None else {name})
        else:
            expected["annotations"].pop(name, None)
            if value is not None:
                expected["annotations"][name] = value
        if who == "us":
            _change(world.one.writes, dataset, kind, name, value)
        else:
            put_readme(world.quirky, dataset.uri, expected["readme"])
            put_tags(world.quirky, dataset.uri, expected["tags"])
            put_annotations(world.quirky, dataset.uri, expected["annotations"])

        found = world.stored(dataset)
        # As text, for 1 == 1.0 == True.
        assert json.dumps(found["annotations"], sort_keys=True) == json.dumps(
            expected["annotations"], sort_keys=True
        )
        assert found == expected
        assert world.one.resolver.readme(dataset).decode() == expected["readme"]


def _change(writes: MetadataWrites, dataset: Dataset, kind: str, name: str, value: Any) -> None:
    if kind == "readme":
        writes.put_readme(dataset, f"readme: {name}\n".encode())
    elif kind == "tags" and value is None:
        writes.delete_tag(dataset, name)
    elif kind == "tags":
        writes.put_tag(dataset, name)
    elif value is None:
        writes.delete_annotation(dataset, name)
    else:
        writes.put_annotation(dataset, name, value)


Changes = Callable[[MetadataWrites, Dataset], None]
CHANGES: dict[str, tuple[str, Changes]] = {
    "a tag is put": ("tags", lambda writes, dataset: writes.put_tag(dataset, "x")),
    "a tag is taken": ("tags", lambda writes, dataset: writes.delete_tag(dataset, "a")),
    "an annotation is put": (
        "annotations",
        lambda writes, dataset: writes.put_annotation(dataset, "x", 1),
    ),
    "an annotation is taken": (
        "annotations",
        lambda writes, dataset: writes.delete_annotation(dataset, "n"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_server_leaves_out_is_put_back_and_the_change_fails(
    world: World, change: str
) -> None:
    kind, make = CHANGES[change]
    dataset = world.add(tags=["a", "other"], annotations={"n": 5, "other": [6]})
    world.quirky.quirks.drops = "other"
    world.one.in_pause = [lambda: setattr(world.quirky.quirks, "drops", "")]

    with pytest.raises(ProtocolError, match=r"other vanished, and was put back; .* try again"):
        make(world.one.writes, dataset)

    assert "other" in world.stored(dataset)[kind]


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_put_back_is_told(world: World, change: str) -> None:
    dataset = world.add(tags=["a", "other"], annotations={"n": 5, "other": [6]})
    world.quirky.quirks.drops = "other"

    with pytest.raises(ProtocolError, match=r"other vanished, and could not be put back"):
        CHANGES[change][1](world.one.writes, dataset)


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_takes_away_meanwhile_stays_away(world: World, change: str) -> None:
    kind, make = CHANGES[change]
    dataset = world.add(tags=["a", "other"], annotations={"n": 5, "other": [6]})

    def take_away() -> None:
        now = world.stored(dataset)
        put_tags(world.quirky, dataset.uri, now["tags"] - {"other"})
        left = {name: value for name, value in now["annotations"].items() if name != "other"}
        put_annotations(world.quirky, dataset.uri, left)

    world.one.in_pause = [take_away]
    make(world.one.writes, dataset)

    assert "other" not in world.stored(dataset)[kind]


@pytest.mark.parametrize("change", CHANGES)
def test_of_two_that_change_at_once_both_get_what_they_wanted(world: World, change: str) -> None:
    """Each reads the set before the other writes; the first finds out that it was overwritten."""
    kind, make = CHANGES[change]
    dataset = world.add(tags=["a", "b"], annotations={"n": 5})
    second_may_write, second_is_done = threading.Event(), threading.Event()
    has_read = threading.Event()

    def hold() -> None:
        world.quirky.before_change = lambda: None
        has_read.set()
        assert second_may_write.wait(LATE_S)

    def other() -> None:
        # What the first takes away may look to the second as if it had vanished.
        with contextlib.suppress(ProtocolError):
            if kind == "tags":
                world.two.writes.put_tag(dataset, "y")
            else:
                world.two.writes.put_annotation(dataset, "y", 2)
        second_is_done.set()

    def let_it_write() -> None:
        second_may_write.set()
        assert second_is_done.wait(LATE_S)

    world.quirky.before_change = hold
    thread = threading.Thread(target=other)
    thread.start()
    assert has_read.wait(LATE_S)
    world.one.in_pause = [let_it_write]
    make(world.one.writes, dataset)
    thread.join(LATE_S)

    before = {"tags": {"a", "b"}, "annotations": {"n"}}[kind]
    changed = before | {"x"} if "put" in change else before - {"a", "n"}
    assert set(world.stored(dataset)[kind]) == changed | {"y"}


def test_registering_anew_keeps_everything_as_it_was(lagging: World) -> None:
    dataset = lagging.add(**OTHERS)
    before, manifest = lagging.entry(dataset), lagging.indexed(dataset)["manifest"]
    lagging.one.writes.put_readme(dataset, b"readme: 2\n")
    lagging.one.writes.put_tag(dataset, "x")

    lagging.one.writes.put_annotation(dataset, "x", 1)
    assert lagging.quirky.asked("^PUT /uris/") == 0  # the index had what the store had
    lagging.one.writes.put_annotation(dataset, "y", 2)

    assert lagging.quirky.asked("^PUT /uris/") == 1
    assert lagging.entry(dataset) == before
    assert lagging.indexed(dataset) == {
        "manifest": manifest,
        "readme": "readme: 2\n",
        "tags": ["a", "b", "x"],
        "annotations": {"n": 5, "x": 1},
    }


@pytest.mark.parametrize("registered_by", ["sleepy", None])
def test_dataset_that_another_registered_is_not_registered_anew(
    lagging: World, registered_by: str | None
) -> None:
    dataset = lagging.add(annotations={"n": 5})
    lagging.entry(dataset)["uploaded_by"] = registered_by
    lagging.one.writes.put_annotation(dataset, "x", 1)
    before = lagging.stored(dataset), lagging.indexed(dataset)

    with pytest.raises(Unsupported, match=r"operator has to index the dataset again"):
        lagging.one.writes.put_annotation(dataset, "y", 2)

    assert (lagging.stored(dataset), lagging.indexed(dataset)) == before


def test_null_is_kept_as_null_or_refused_in_one_line(world: World) -> None:
    dataset = world.add(annotations={"n": 5})

    world.one.writes.put_annotation(dataset, "nothing", None)

    assert world.stored(dataset)["annotations"] == {"n": 5, "nothing": None}
    world.quirky.quirks.refuses_no_value = True
    with pytest.raises(UsageError, match="keeps no null"):
        world.one.writes.put_annotation(dataset, "more", None)


def test_dataset_whose_store_cannot_be_read_is_not_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = world.add(**OTHERS)
    monkeypatch.setattr(signing, "MAX_ITEMS_ASKED_WHOLE", 1)

    assert not world.one.writes.supports(dataset)
    for change in [make for _, make in CHANGES.values()]:
        with pytest.raises(Unsupported, match=f"URLs of {len(CONTENTS)} items"):
            change(world.one.writes, dataset)
    assert world.quirky.asked("^(PUT|POST|DELETE) /(tags|annotations|readmes)/") == 0
