"""Under which inode numbers local files are shown, and for how long they are kept."""

from __future__ import annotations

import os
import threading

import pytest

from dserverfs.base.errors import NotFound
from dserverfs.catalogue.refreshed import loaded
from dserverfs.tree.frozen_dataset import EDITED, DatasetTree
from dserverfs.writing.edits.journal import LIMIT_BYTES
from tests.support.editing import BEFORE, README, WAIT_S, Bench, away

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

SCRATCH = ".README.yml.new"


def number_of(bench: Bench, name: str) -> int:
    return loaded(lambda: bench.tree.lookup(DatasetTree.ROOT, name).number)


def replace(bench: Bench, content: bytes) -> int:
    """Replace the README by a rename; return the number of the file that became it."""
    bench.make(SCRATCH, content)
    number = number_of(bench, SCRATCH)
    bench.rename(SCRATCH, README)
    return number


def test_number_moves_with_a_file_that_is_renamed(bench: Bench) -> None:
    bench.make(SCRATCH, b"x")
    number = number_of(bench, SCRATCH)

    bench.rename(SCRATCH, ".other")
    assert number_of(bench, ".other") == number
    bench.make(SCRATCH, b"y")
    assert number_of(bench, SCRATCH) != number
    bench.rename(".other", README)

    assert number_of(bench, README) == number >= EDITED


def test_number_before_leads_to_what_is_there_now(bench: Bench) -> None:
    tree = bench.tree
    own = loaded(lambda: tree.lookup(DatasetTree.ROOT, README).number)
    first, second = replace(bench, b"first: 1\n"), replace(bench, b"second: 1\n")

    assert len({own, first, second}) == 3
    for number in (own, first, second):  # as a process asks that has it open still
        shown = loaded(lambda number=number: tree.attributes(number))  # type: ignore[misc]
        assert (shown.number, shown.size_in_bytes) == (number, len(b"second: 1\n"))


def test_file_that_is_open_outlives_its_name_and_no_other_does(bench: Bench) -> None:
    handle = bench.create(SCRATCH, flags=os.O_RDWR)
    bench.edits.write(handle, b"content", 0)
    bench.make(".closed", b"x")
    numbers = number_of(bench, SCRATCH), number_of(bench, ".closed")

    bench.remove(SCRATCH)
    bench.remove(".closed")

    attributes = bench.tree.attributes(numbers[0])
    assert (attributes.number_of_links, attributes.size_in_bytes) == (0, len(b"content"))
    assert os.pread(handle.fd, 100, 0) == b"content"
    bench.edits.release(handle)
    for number in numbers:
        with pytest.raises(NotFound):
            bench.tree.attributes(number)
    assert bench.local_files() == []


@pytest.mark.expects_log("could not be sent")
def test_change_that_is_discarded_while_somebody_reads_it_is_read_to_its_end(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"wrong: 1\n")
    reading = bench.reads(README)

    bench.edits.discard(bench.dataset, README)

    assert bench.shows(README) == BEFORE
    assert os.pread(reading.fd, 100, 0) == b"wrong: 1\n"
    bench.edits.release(reading)
    assert bench.local_files() == []


def test_room_of_what_is_gone_can_be_used_again(bench: Bench) -> None:
    for _ in range(3):
        handle = bench.create(SCRATCH)
        bench.edits.truncate(handle, LIMIT_BYTES)
        bench.remove(SCRATCH)
        bench.edits.release(handle)

    assert bench.local_files() == []


def test_file_that_is_removed_while_it_becomes_the_readme_is_the_readme(bench: Bench) -> None:
    bench.make(SCRATCH, b"new: 1\n")
    bench.writes.may_go_on.clear()
    renaming = threading.Thread(target=bench.rename, args=(SCRATCH, README))
    renaming.start()
    assert bench.writes.reached.wait(WAIT_S)

    bench.remove(SCRATCH)
    bench.writes.may_go_on.set()
    renaming.join(WAIT_S)

    assert bench.has("readme") == "new: 1\n"
    assert bench.shows(README) == b"new: 1\n"
    assert bench.names() == [".dtool", README, "data"]
    assert bench.local_files() == []


def test_file_that_was_sent_between_two_looks_is_the_servers(bench: Bench) -> None:
    tree = bench.tree
    handle = bench.open(README)
    bench.edits.write(handle, b"new: 1\n", 0)
    file = bench.edits.shown(bench.dataset, README).file
    assert file is not None

    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.edits.status(file) is None
    assert bench.edits.open_local(file) is None
    assert loaded(lambda: tree.lookup(DatasetTree.ROOT, README)).size_in_bytes == len(b"new: 1\n")


def test_target_that_was_moved_away_and_became_another_one_is_shown_again(bench: Bench) -> None:
    bench.write(README, b"5")
    bench.rename(README, "README.yml~")
    bench.rename("README.yml~", ".dtool/annotations/n.json")

    assert bench.has("annotations") == {"n": 5}
    assert bench.shows(README) == b"5"
