"""Changes of frozen datasets without a kernel: what the server can change, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from dserverfs.base.errors import CannotHold, Frozen
from dserverfs.base.items import ItemContent
from dserverfs.catalogue.refreshed import loaded
from dserverfs.tree.attributes import Changes
from dserverfs.tree.frozen_changes import FrozenChanges
from dserverfs.tree.mount_tree import InFrozen
from dserverfs.tree.open_files import OpenFile
from dserverfs.tree.refusals import NotOpenForWriting, NotPermitted
from dserverfs.tree.steps import Steps
from tests.support.editing import BEFORE, README, Bench
from tests.support.file_system_calls import THREAD, finish

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

TAGS = ".dtool/tags"
AFTER = b"readme: after\n"


class Dataset:
    """A frozen dataset, and the changes that a mount makes in it."""

    def __init__(self, bench: Bench) -> None:
        self.tree = bench.tree
        self.changes = FrozenChanges(bench.edits, umask=0)

    def at(self, path: str) -> InFrozen:
        number = self.tree.ROOT
        for name in filter(None, path.split("/")):
            number = loaded(lambda name=name, number=number: self.tree.lookup(number, name).number)  # type: ignore[misc]
        return InFrozen(self.tree, number)

    def open(self, path: str, flags: int) -> OpenFile:
        opened = finish(self.changes.open(self.at(path), flags, THREAD))
        assert not isinstance(opened, ItemContent)
        return opened

    def create(self, directory: str, name: str) -> OpenFile:
        place = self.at(directory)
        return finish(self.changes.create(place, name.encode(), 0o644, os.O_WRONLY, THREAD))

    def rename(self, old: str, new: str) -> None:
        top = self.at("")
        finish(self.changes.rename(top, old.encode(), top, new.encode(), 0, THREAD))


@pytest.fixture
def dataset(bench: Bench) -> Dataset:
    return Dataset(bench)


def test_readme_that_is_rewritten_is_sent_when_it_is_synced(bench: Bench, dataset: Dataset) -> None:
    file = dataset.open(README, os.O_RDWR | os.O_TRUNC)

    finish(file.write(0, AFTER))
    shown = finish(file.read(0, 100))
    before = bench.has("readme")
    finish(file.sync(data_only=False))

    assert shown == AFTER
    assert before.encode() == BEFORE
    assert bench.has("readme").encode() == AFTER
    file.close()


def test_readme_that_is_replaced_is_sent(bench: Bench, dataset: Dataset) -> None:
    file = dataset.create("", "README.yml~")
    finish(file.write(0, AFTER))
    file.close()

    dataset.rename("README.yml~", README)

    assert bench.has("readme").encode() == AFTER


def test_readme_that_is_cut_by_its_name_is_sent(bench: Bench, dataset: Dataset) -> None:
    finish(dataset.changes.change(dataset.at(README), Changes(size_in_bytes=7), None))

    assert bench.has("readme").encode() == BEFORE[:7]


def test_readme_that_is_open_for_reading_is_not_written_to(dataset: Dataset) -> None:
    file = dataset.open(README, os.O_RDONLY)

    assert finish(file.read(0, 100)) == BEFORE
    with pytest.raises(NotOpenForWriting):
        finish(file.write(0, AFTER))
    file.close()


def test_tag_is_made_and_removed_and_holds_nothing(bench: Bench, dataset: Dataset) -> None:
    before = set(bench.has("tags"))

    tag = dataset.create(TAGS, "new")
    with pytest.raises(CannotHold):
        finish(tag.write(0, b"content"))
    tag.close()
    made = set(bench.has("tags"))
    finish(dataset.changes.remove(dataset.at(TAGS), b"new"))

    assert made == before | {"new"}
    assert set(bench.has("tags")) == before


def test_mode_that_no_server_keeps_is_refused(dataset: Dataset) -> None:
    finish(dataset.changes.change(dataset.at(README), Changes(mode=0o644), None))
    with pytest.raises(Frozen):
        finish(dataset.changes.change(dataset.at(README), Changes(mode=0o600), None))


REFUSED: dict[str, tuple[type[Exception], Callable[[Dataset, InFrozen], Steps[Any]]]] = {
    "writing to an item": (
        Frozen,
        lambda dataset, item: dataset.changes.open(item, os.O_WRONLY, THREAD),
    ),
    "cutting an item": (
        Frozen,
        lambda dataset, item: dataset.changes.change(item, Changes(size_in_bytes=0), None),
    ),
    "appending to what is read": (
        Frozen,
        lambda dataset, item: dataset.changes.open(item, os.O_APPEND, THREAD),
    ),
    "a new item": (
        Frozen,
        lambda dataset, item: dataset.changes.create(
            dataset.at("data"), b"new", 0o644, os.O_WRONLY, THREAD
        ),
    ),
    "a file that would not stay": (
        Frozen,
        lambda dataset, item: dataset.changes.create(
            dataset.at(""), b"results.csv", 0o644, os.O_WRONLY, THREAD
        ),
    ),
    "removing the README": (
        Frozen,
        lambda dataset, item: dataset.changes.remove(dataset.at(""), README.encode()),
    ),
    "a link": (
        NotPermitted,
        lambda dataset, item: dataset.changes.refuse_link(dataset.at(""), b".#README.yml"),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_frozen(dataset: Dataset, what: str) -> None:
    kind, change = REFUSED[what]
    item = InFrozen(
        dataset.tree, next(iter(dataset.tree.children(dataset.at("data").number, 0))).cookie
    )

    with pytest.raises(kind):
        finish(change(dataset, item))


def test_without_edits_nothing_can_be_changed(dataset: Dataset) -> None:
    dataset.changes = FrozenChanges(None, umask=0)

    assert finish(dataset.open(README, os.O_RDONLY).read(0, 100)) == BEFORE
    with pytest.raises(Frozen):
        dataset.open(README, os.O_WRONLY)
    with pytest.raises(Frozen):
        dataset.create(TAGS, "new")
    with pytest.raises(Frozen):
        finish(dataset.changes.refuse_link(dataset.at(""), b"link"))
