"""The directories above the datasets: they lead to base URIs, and stay once they were shown."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dserverfs.base.errors import NotFound, PermissionDenied
from dserverfs.base.model import DserverURI, User
from dserverfs.tree import number_journal
from dserverfs.tree.number_journal import NumberJournal
from dserverfs.tree.upper_directories import TOP, UpperDirectories


class Rights:
    """A catalogue that knows what the user may do, and nothing else."""

    def __init__(self, search: list[str], register: list[str]) -> None:
        self.search, self.register = search, register

    def user(self) -> User:
        return User("grumpy", False, tuple(self.search), tuple(self.register))


def directories(rights: Rights, base_uri: str | None = None) -> UpperDirectories:
    catalogue: Any = rights
    return UpperDirectories(DserverURI("server", base_uri), catalogue, 7)


@pytest.fixture
def rights() -> Rights:
    return Rights(["s3://one", "s3://two/deep", "azure://one"], ["s3://one"])


def test_directories_lead_to_base_uris(rights: Rights) -> None:
    upper = directories(rights)

    assert upper.below(()) == ["azure", "s3"]
    assert upper.below(("s3",)) == ["one", "two"]
    assert upper.below(("s3", "two")) == ["deep"]
    assert upper.is_base_uri(("s3", "two", "deep"))
    assert not upper.is_base_uri(("s3", "two"))
    assert upper.base_uri(("s3", "two", "deep")) == "s3://two/deep"
    assert upper.path_of("s3://two/deep") == ("s3", "two", "deep")


def test_mount_of_a_base_uri_begins_there(rights: Rights) -> None:
    upper = directories(rights, "s3://two")

    assert upper.below(()) == ["deep"]
    assert upper.base_uri(("deep",)) == "s3://two/deep"
    assert upper.path_of("s3://two/deep") == ("deep",)


def test_numbers_stay_and_lead_back_to_paths(rights: Rights) -> None:
    upper = directories(rights)

    one, two = upper.number(("s3", "one")), upper.number(("s3", "two"))

    assert upper.number(()) == TOP
    assert len({TOP, one, two}) == 3
    assert upper.number(("s3", "one")) == one
    assert upper.path(two) == ("s3", "two")
    with pytest.raises(NotFound):
        upper.path(two + 1)


def test_only_where_datasets_can_be_registered_is_writable(rights: Rights) -> None:
    upper = directories(rights)

    assert upper.attributes(("s3", "one")).permissions == 0o755
    assert upper.attributes(("s3", "two", "deep")).permissions == 0o555


def test_base_uri_that_was_shown_stays(rights: Rights) -> None:
    upper = directories(rights)
    upper.below(())

    rights.search = ["azure://one"]

    assert upper.below(("s3",)) == ["one", "two"]
    assert upper.is_base_uri(("s3", "one"))


def test_base_uri_that_was_shown_stays_for_the_next_daemon(rights: Rights) -> None:
    """And for the one after that; each writes a journal of its own."""
    journal = NumberJournal.create(7)
    catalogue: Any = rights
    uri = DserverURI("server", None)
    assert UpperDirectories(uri, catalogue, 7, journal).below(("s3",)) == ["one", "two"]
    rights.search = ["s3://three"]

    for _ in range(2):
        known = number_journal.known(os.pread(journal.fd, 1 << 20, 0))
        os.close(journal.fd)
        journal = NumberJournal.create(7)
        upper = UpperDirectories(uri, catalogue, 7, journal)
        upper.restore(known)
        assert sorted(upper.below(("s3",))) == ["one", "three", "two"]
        with pytest.raises(PermissionDenied):
            upper.listed(("s3", "one"))
    os.close(journal.fd)
