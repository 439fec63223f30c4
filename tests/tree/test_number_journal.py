"""The journal of inode numbers: what one process writes there, another one reads."""

from __future__ import annotations

import os

import pytest

from dserverfs.base.errors import ProtocolError
from dserverfs.catalogue import manifest_index
from dserverfs.tree import number_journal
from dserverfs.tree.number_journal import NumberJournal, following, known, of_kind


def content(journal: NumberJournal) -> bytes:
    return os.pread(journal.fd, 1 << 20, 0)


@pytest.fixture
def journal() -> NumberJournal:
    return NumberJournal.create(7)


def test_last_value_of_a_key_counts(journal: NumberJournal) -> None:
    note = journal.of("node", 3)
    note(10, value=[1, 2, [[5, "näme\udcff"]]])
    note(11, value=[1, 3, []])
    note(10, value=[1, 2, [[5, "other"]]])
    note(12, value=[1, 4, []])
    note(12, value=None)
    journal.note("upper", 1, value=("s3", "bucket"))

    found = known(content(journal))

    assert number_journal.mounted_ns(found) == 7
    assert of_kind(found, "node", 3) == {10: [1, 2, [[5, "other"]]], 11: [1, 3, []]}
    assert of_kind(found, "node", 4) == {}
    assert of_kind(found, "upper") == {1: ["s3", "bucket"]}


def test_number_that_was_taken_away_is_not_given_again(journal: NumberJournal) -> None:
    journal.note("node", 3, 10, value=[])
    journal.note("node", 3, 12, value=None)

    found = known(content(journal))

    assert following(found, 5, "node", 3) == 13
    assert following(found, 5, "node", 4) == 5


@pytest.mark.parametrize("cut", range(1, 30))
def test_line_that_was_not_written_to_its_end_is_none(journal: NumberJournal, cut: int) -> None:
    journal.note("upper", 1, value=["first"])
    whole = content(journal)
    journal.note("upper", 2, value=["not to its end"])

    found = known(content(journal)[: len(whole) + cut])

    assert of_kind(found, "upper") == {1: ["first"]}


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\n", b"[]\n", b"{}\n", b'[["head"],[1,2]]\n', b"\xff\n", b'[["upper",1],["x"]]\n'],
)
def test_what_is_no_journal_is_an_error(damaged: bytes) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        known(damaged)


def test_journal_of_another_format_is_refused(
    journal: NumberJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = content(journal)
    monkeypatch.setattr(number_journal, "FORMAT_VERSION", manifest_index.FORMAT_VERSION + 1)

    with pytest.raises(ProtocolError, match="mount it again"):
        known(written)


@pytest.mark.expects_log("the mount has given too many inode numbers")
def test_journal_that_is_too_large_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_journal, "MAX_BYTES", 1000)
    journal = NumberJournal.create(7)
    fd = journal.fd
    for number in range(100):
        journal.note("upper", number, value=["a path"])

    with pytest.raises(ProtocolError):
        known(os.pread(fd, 1 << 20, 0))
