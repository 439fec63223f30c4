"""What others change is shown: after a pause at once, and a new name whenever it is asked for."""

from __future__ import annotations

import json
import uuid as uuid_module
from collections.abc import Callable
from typing import Any

import pytest

from dserverfs.base.errors import NotFound
from dserverfs.base.model import DserverURI
from dserverfs.catalogue.catalogue import FRESH_S, RENEW_S
from dserverfs.catalogue.refreshed import loaded
from dserverfs.tree.mount_tree import ROOT, Tree
from tests.support.editing import BEFORE, README, Bench
from tests.support.quirky_changes import put_annotations, put_readme, put_tags
from tests.support.quirky_server import BASE_URI, CONTENTS

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

LONG_S = 5 * FRESH_S
TAG = ".dtool/tags/new"
ANNOTATION = ".dtool/annotations/new.json"


def colleague(bench: Bench) -> None:
    """Change everything that a colleague can."""
    described = bench.quirky.described[bench.dataset.uri]
    described["readme"] = "theirs: 1\n"
    put_readme(bench.quirky, bench.dataset.uri, "theirs: 1\n")
    put_tags(bench.quirky, bench.dataset.uri, ["new"])
    put_annotations(bench.quirky, bench.dataset.uri, {"new": 1})


def look(bench: Bench) -> None:
    assert bench.shows(README) == BEFORE
    assert bench.names(".dtool/tags") == ["a", "b"]
    assert bench.names(".dtool/annotations") == ["n.json"]


def test_after_a_pause_the_first_look_shows_what_is(bench: Bench) -> None:
    look(bench)
    colleague(bench)
    bench.ahead_s += LONG_S

    assert bench.shows(README) == b"theirs: 1\n"
    assert bench.names(".dtool/tags") == ["new"]
    assert bench.names(".dtool/annotations") == ["new.json"]


@pytest.mark.parametrize("path", [TAG, ANNOTATION])
def test_name_that_a_colleague_made_is_there_for_who_asks_for_it(bench: Bench, path: str) -> None:
    look(bench)
    colleague(bench)
    bench.ahead_s += RENEW_S

    assert json.loads(bench.shows(path) or b"1") == 1


@pytest.mark.parametrize("path", [TAG, ANNOTATION])
def test_name_that_is_not_there_is_not_asked_for_again_and_again(bench: Bench, path: str) -> None:
    look(bench)
    bench.ahead_s += RENEW_S
    before = bench.quirky.asked("^GET /signed-urls/dataset/")

    for _ in range(10):
        with pytest.raises(NotFound):
            bench.shows(path)

    assert bench.quirky.asked("^GET /signed-urls/dataset/") == before + 1


def add(bench: Bench, name: str) -> str:
    uuid = str(uuid_module.uuid4())
    bench.quirky.add(uuid, CONTENTS, name=name)
    return uuid


@pytest.mark.parametrize("pause_s", [RENEW_S, FRESH_S, LONG_S])
def test_dataset_that_a_colleague_made_is_there_for_who_asks_for_it(
    bench: Bench, pause_s: float
) -> None:
    tree = Tree(DserverURI("server", BASE_URI), bench.catalogue, 0)
    lookup: Callable[[str], Any] = lambda name: loaded(lambda: tree.lookup(ROOT, name))  # noqa: E731
    with pytest.raises(NotFound):
        lookup("theirs")
    add(bench, "theirs")
    bench.ahead_s += pause_s

    assert lookup("theirs").is_directory
    for _ in range(3):
        with pytest.raises(NotFound):
            lookup("nobodys")


def test_listing_after_a_pause_has_the_new_dataset(bench: Bench) -> None:
    tree = Tree(DserverURI("server", BASE_URI), bench.catalogue, 0)
    names: Callable[[], list[str]] = lambda: [  # noqa: E731
        entry.name for entry in loaded(lambda: list(tree.children(ROOT, 0)))
    ]
    assert "theirs" not in names()
    add(bench, "theirs")
    bench.ahead_s += LONG_S

    assert "theirs" in names()


def test_base_uri_that_was_made_accessible_is_there_for_who_asks_for_it(bench: Bench) -> None:
    tree = Tree(DserverURI("server"), bench.catalogue, 0)
    lookup: Callable[[str], Any] = lambda name: loaded(lambda: tree.lookup(ROOT, name))  # noqa: E731
    assert lookup("s3").is_directory
    with pytest.raises(NotFound):
        lookup("azure")
    bench.quirky.permissions.append("azure://bucket")
    bench.ahead_s += RENEW_S

    assert lookup("azure").is_directory
