"""Entries of manifests, honest and hostile: each is shown under its relpath, or refused alone."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base import limits
from dserverfs.base.items import REFUSED_PREFIX
from dserverfs.base.model import identifier_of
from dserverfs.catalogue.manifest_rows import ManifestTree

GOOD = {"relpath": "good", "size_in_bytes": 7, "hash": "AB", "utc_timestamp": 1.5}
Found = dict[str, tuple[Any, ...]]


def entry(relpath: object, **others: object) -> dict[str, object]:
    return {**GOOD, "relpath": relpath, **others}


def shown(tree: ManifestTree) -> Found:
    """Return the rows of items by their paths below `data`."""
    paths: dict[int, str] = {}
    found: Found = {}
    for row, parent, name, identifier, *others in tree.rows():
        paths[row] = f"{paths[parent]}{name}" if row else ""
        if identifier is None:
            paths[row] += "/" if row else ""
        else:
            assert paths[row] not in found
            found[paths[row]] = (identifier, *others)
    return found


def shown_of(*manifests: dict[str, Any]) -> tuple[Found, ManifestTree]:
    tree = ManifestTree()
    for items in manifests:
        tree.add(items)
    return shown(tree), tree


@pytest.mark.parametrize(
    "relpath",
    [
        "/abs",
        "../up",
        "a/../b",
        "",
        "a//b",
        "a/",
        "nul\0",
        "x" * 256,
        "x/" * 500 + "x",
        "/".join(["x" * 200] * 25),
        "\ud800",
        "a" * 100_000,
        None,
        5,
        ["a"],
    ],
)
def test_hostile_relpath_is_refused_alone(relpath: object) -> None:
    identifier = identifier_of(relpath) if relpath in ("/abs", "../up") else "0" * 40

    found, tree = shown_of({identifier: entry(relpath), identifier_of("good"): GOOD})

    assert set(found) == {"good", f".refused-{identifier}"}
    assert [found[name][4] for name in sorted(found)] == [1, 0]
    assert tree.unsafe == 1
    assert tree.number_of_items == 2


def test_item_of_another_identifier_than_its_relpath_has_is_refused() -> None:
    found, tree = shown_of({identifier_of("other"): GOOD})

    assert set(found) == {f".refused-{identifier_of('other')}"}
    assert tree.unsafe == 1


@pytest.mark.parametrize("identifier", ["", "i", "../..", "A" * 40, "\ud800", "x" * 10_000])
def test_item_without_an_identifier_is_refused_under_one(identifier: str) -> None:
    found, _ = shown_of({identifier: GOOD, identifier_of("a"): entry("a")})

    (refused,) = set(found) - {"a"}
    assert limits.is_identifier(refused.removeprefix(REFUSED_PREFIX))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("size_in_bytes", [None, True, -1, 1.0, "3", 1 << 63, 10**30, []]),
        ("utc_timestamp", [None, math.nan, math.inf, 1e300, -1e12, 10**400, "x"]),
        ("hash", [None, 5, "\ud800", "a" * 129, "a\n", "\x1b"]),
    ],
)
def test_item_with_a_size_hash_or_date_that_is_none_is_refused_alone(
    key: str, values: list[object]
) -> None:
    for value in values:
        bad = entry("bad", **{key: value})

        found, tree = shown_of({identifier_of("bad"): bad, identifier_of("good"): GOOD})

        assert set(found) == {"good", f".refused-{identifier_of('bad')}"}
        # Nothing can be written outside by it: the manifest itself stays usable.
        assert tree.unsafe == 0
        assert tree.size_in_bytes == 7


@pytest.mark.parametrize("bad", [None, [], "text", 5, math.nan])
def test_entry_that_is_none_is_refused_alone(bad: object) -> None:
    found, _ = shown_of({identifier_of("bad"): bad, identifier_of("good"): GOOD})

    assert set(found) == {"good", f".refused-{identifier_of('bad')}"}


@pytest.mark.parametrize("size", [0, 1 << 44, (1 << 63) - 1])
def test_size_within_the_limit_is_shown(size: int) -> None:
    found, tree = shown_of(
        {identifier_of(name): entry(name, size_in_bytes=size) for name in ("a", "b")}
    )

    assert found["a"][1] == found["b"][1] == size
    assert tree.size_in_bytes <= limits.MAX_SIZE_BYTES


@pytest.mark.parametrize(
    ("utc_timestamp", "mtime_ns"),
    [
        (-1, -1_000_000_000),
        (9_223_372_036.5, 9_223_372_036_500_000_000),
        (9_300_000_000, limits.LAST_SHOWN_NS),
        (1_700_000_000.123456, 1_700_000_000_123_456_000),
        (1e10, limits.LAST_SHOWN_NS),
        (limits.LAST_DATE_S, limits.LAST_SHOWN_NS),
        (-11_644_473_600, limits.FIRST_SHOWN_NS),  # the year 1601
    ],
)
def test_dates_within_the_range_are_shown_as_far_as_they_can(
    utc_timestamp: float, mtime_ns: int
) -> None:
    found, _ = shown_of({identifier_of("a"): entry("a", utc_timestamp=utc_timestamp)})

    assert found["a"][3] == mtime_ns


def test_names_that_look_refused_are_their_owners() -> None:
    hostile = identifier_of("../x")
    real = [f".refused-{hostile}", ".refused-x", f".refused-{hostile}~/inside"]

    found, _ = shown_of(
        {hostile: entry("../x"), **{identifier_of(name): entry(name) for name in real}}
    )

    assert set(found) == {*real, f".refused-{hostile}~~"}
    assert [name for name, row in found.items() if row[4]] == [f".refused-{hostile}~~"]


def test_of_an_item_that_is_there_twice_one_is_shown_and_the_other_refused() -> None:
    identifier = identifier_of("d/a")
    twice: dict[str, Any] = {identifier: entry("d/a")}

    found, _ = shown_of(twice, twice)

    assert set(found) == {"d/a", f".refused-{identifier}"}


COMPONENTS = st.sampled_from(
    [
        "a",
        "b",
        "é",
        ".refused-x",
        f".refused-{identifier_of('..')}",
        "..",
        ".",
        "",
        "\ud800",
        "x" * 256,
    ]
)
RELPATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)


def usable_identifier_of(relpath: str) -> str:
    return "f" * 40 if "\ud800" in relpath else identifier_of(relpath)


@given(st.sets(RELPATHS, max_size=12), st.sets(RELPATHS, max_size=3), st.booleans())
def test_whatever_relpaths_there_are_all_that_can_be_shown_are(
    relpaths: set[str], impostors: set[str], in_one_part: bool
) -> None:
    items = {usable_identifier_of(relpath): entry(relpath) for relpath in relpaths}
    items |= {identifier_of(f"not {n}"): entry(r) for n, r in enumerate(sorted(impostors))}
    parts = [items] if in_one_part else [{key: value} for key, value in items.items()]

    found, tree = shown_of(*parts)

    usable = {relpath for relpath in relpaths if limits.relpath_is_usable(relpath)}
    right = {
        relpath
        for relpath in usable
        if not usable.intersection(map(str, PurePosixPath(relpath).parents))
    }
    assert {path for path, row in found.items() if not row[4]} == right
    assert len(found) == len(items) == tree.number_of_items
    assert tree.unsafe == len(items) - len(right)
    refused = [path for path, row in found.items() if row[4]]
    assert all(path.startswith(REFUSED_PREFIX) and "/" not in path for path in refused)
