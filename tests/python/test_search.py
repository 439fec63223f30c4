"""Searches by programs: the conditions of `dserverfs find`, as Python has them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import pytest

import dserverfs
from tests.support.programs import Programs

pytest_plugins = ["tests.support.program_fixtures"]


@pytest.fixture(scope="module")
def base(programs: Programs) -> str:
    for number, name in enumerate(("search-one", "search-two")):
        with dserverfs.create(programs.base, name) as new:
            new.put("item", name)
            new.set_readme(f"description: peculiarword{number} <i>of</i> both")
            new.tag("search-both", f"search-{number}")
            new.annotate("search-number", number)
            new.annotate("search-text", str(number))
    return programs.base


@pytest.mark.parametrize(
    ("texts", "conditions", "expected"),
    [
        ((), {"tags": "search-both"}, ["search-two", "search-one"]),
        ((), {"tags": ["search-both", "search-1"]}, ["search-two"]),
        ("peculiarword0", {}, ["search-one"]),
        (["peculiarword0", "peculiarword1"], {}, []),
        ((), {"annotations": {"search-number": 1}}, ["search-two"]),
        ((), {"annotations": {"search-number": "1"}}, ["search-two"]),
        ((), {"annotations": {"search-text": "0"}}, ["search-one"]),
        ((), {"annotations": {"search-number": None}}, ["search-two", "search-one"]),
        ((), {"annotations": {"search-number": 1, "search-text": "0"}}, []),
        ((), {"name": "search-t*"}, ["search-two"]),
        ((), {"name": "search-*", "creator": "nobody"}, []),
        ((), {"hash": "3B20A9F8B9AAE8AF2B5E0B7E1C2D4E5F"}, []),
        (
            (),
            {"name": "search-*", "newer": datetime.date(2020, 1, 1)},
            ["search-two", "search-one"],
        ),
        ((), {"name": "search-*", "older": datetime.datetime(2020, 1, 1, 12)}, []),
    ],
)
def test_conditions_are_those_of_find(
    base: str, texts: Sequence[str], conditions: dict[str, Any], expected: list[str]
) -> None:
    assert [each.name for each in dserverfs.search(base, texts, **conditions)] == expected


def test_found_datasets_are_opened_and_shown(base: str, programs: Programs) -> None:
    found = dserverfs.search(f"dserver://{programs.host}", tags="search-1")
    shown = found._repr_html_()

    assert found == [dserverfs.open(f"{base}/search-two")]
    assert found[0]["item"].read_text() == "search-two"
    assert dserverfs.search(base, hash=found[0]["item"].hash) == found
    assert "search-two" in shown
    assert found[0].uri in shown
    assert dserverfs.Datasets()._repr_html_().count("<tr>") == 1


def test_what_cannot_be_asked_is_told(programs: Programs) -> None:
    with pytest.raises(dserverfs.PermissionDenied):
        dserverfs.search(f"dserver://{programs.host}/s3/not-ours", tags="x")
    with pytest.raises(dserverfs.UsageError):
        dserverfs.search("lab.example.org", tags="x")
