"""What the channel is told of contents while items turn out wrong, and which pages are forgotten.

The channel, the tree and the reader are stand-ins: a drop has to come in the middle of a look-up.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dserverfs.base.items import ItemContent
from dserverfs.mount.channel.contents import packed
from dserverfs.mount.replies import Ownership
from dserverfs.mount.told_contents import ToldContents
from dserverfs.mount.told_rows import ToldRows
from dserverfs.reading.item_order import Stretch
from dserverfs.tree.mount_tree import Inode
from tests.support.patience import LATE_S

OWN, ALIAS, OTHER = (slot << 36 for slot in (1, 2, 3))
URIS = {OWN: "s3://b/one", ALIAS: "s3://b/one", OTHER: "s3://b/other"}
ROWS = 3
TOLD = packed([(row, b"content") for row in range(ROWS)])


def item(row: int, uri: str = "s3://b/one") -> ItemContent:
    content = object.__new__(ItemContent)
    values = {"key": f"{uri} {row}", "dataset": SimpleNamespace(uri=uri), "place": row}
    for each in dataclasses.fields(ItemContent):
        object.__setattr__(content, each.name, values.get(each.name))
    object.__setattr__(content, "size_in_bytes", 7)
    return content


class Stage:
    """A mount of which a test sees what is told and forgotten."""

    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self.asked: list[int] = []
        self.told: list[bytes] = []
        self.came = threading.Event()
        self.drop: Callable[[ItemContent], None]
        self.in_the_middle: Callable[[], None] = lambda: None
        self.listed = set(URIS.values())
        link = SimpleNamespace(
            forget=self.forgotten.append,
            invalidate_inode=self.asked.append,
            tell_dataset=lambda base: None,
            take_back=lambda base: None,
            tell_contents=self._tell,
        )
        tree = SimpleNamespace(
            dataset_of_row=lambda inode: SimpleNamespace(
                dataset=SimpleNamespace(uri=URIS[inode]),
                contents_from=lambda first, limit: [item(row) for row in range(first, ROWS)],
            ),
            listed_uris=lambda: self.listed,
        )
        reader = SimpleNamespace(
            drops=SimpleNamespace(watch=lambda tell: setattr(self, "drop", tell)),
            small=SimpleNamespace(compared=self._compared),
        )
        self.rows = ToldRows(cast("Any", link), cast("Any", tree), Ownership(1, 1, 0), lambda: 0.0)
        self.contents = ToldContents(cast("Any", link), self.rows, cast("Any", reader))
        for base in URIS:
            self.rows.noticed(Inode(base))

    def _compared(self, items: Sequence[ItemContent]) -> list[bytes]:
        self.in_the_middle()
        return [b"content" for _ in items]

    def _tell(self, base: int, stretch: Stretch, covered: int, pack: bytes) -> None:
        self.told.append(pack)
        self.came.set()

    def ask(self) -> bytes:
        """Ask for contents, as the channel does; return what is told."""
        self.came.clear()
        self.contents.ask(OWN, Stretch(0, ROWS, False))
        assert self.came.wait(LATE_S)
        return self.told[-1]

    def wrong(self, content: ItemContent) -> tuple[list[int], list[int]]:
        """Drop an item; return what the channel and the kernel have to forget."""
        self.forgotten.clear()
        self.asked.clear()
        self.drop(content)
        for thread in threading.enumerate():
            if thread.name == "invalidate":
                thread.join(LATE_S)
        return sorted(self.forgotten), sorted(self.asked)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.contents.close()


@pytest.mark.parametrize("which", [item(1), item(1, "s3://b/other")])
def test_nothing_is_told_of_a_look_up_during_which_an_item_turned_out_wrong(
    stage: Stage, which: ItemContent
) -> None:
    assert stage.ask() == TOLD
    stage.in_the_middle = lambda: stage.drop(which)
    assert stage.ask() == b""

    stage.in_the_middle = lambda: None
    assert stage.ask() == TOLD


def test_pages_of_a_wrong_item_are_forgotten_by_its_name_and_by_its_uuid(stage: Stage) -> None:
    both = [OWN + 2, ALIAS + 2]
    assert stage.wrong(item(2)) == (both, both)
    assert stage.wrong(item(2, "s3://b/other")) == ([OTHER + 2], [OTHER + 2])
    assert stage.wrong(item(2, "s3://b/never-told")) == ([], [])


def test_pages_of_a_dataset_that_is_listed_no_more_are_forgotten_as_well(stage: Stage) -> None:
    stage.listed = set()
    stage.rows.looked_up(Inode(1), is_found=False)
    assert stage.rows.dataset(OWN) is None

    assert stage.wrong(item(2))[1] == [OWN + 2, ALIAS + 2]
