"""Conditions on what a listing tells, on annotations and on words."""

from __future__ import annotations

from typing import Any

import pytest

from dserverfs.base.conditions import AnnotationIs, Conditions, has_words
from dserverfs.base.model import UUID, BackendURI, Dataset

UUID_1 = UUID("00000001-2222-3333-4444-555555555555")
DATASET = Dataset(
    UUID_1, BackendURI(f"s3://b/{UUID_1}"), "s3://b", "plate-1", "grumpy", 1.0, 2.0, 1, 1
)


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        (Conditions(), True),
        (Conditions(creators=("grumpy",)), True),
        (Conditions(creators=("grumpy", "happy")), False),
        (Conditions(creators=("grump",)), False),
        (Conditions(names=("plate-*", "*1")), True),
        (Conditions(names=("plate-*", "*2")), False),
        (Conditions(names=("plate",)), False),
        (Conditions(names=("Plate-?",)), False),
        (Conditions(uuids=(UUID_1,)), True),
        (Conditions(uuids=(UUID_1, UUID("f" * 36))), False),
        (Conditions(frozen_from=2.0), True),
        (Conditions(frozen_from=2.5), False),
        (Conditions(frozen_before=2.0), False),
        (Conditions(frozen_before=2.5), True),
        (Conditions(tags=("asked elsewhere",), texts=("and this",)), True),
    ],
)
def test_conditions_on_what_is_listed(conditions: Conditions, fits: bool) -> None:
    assert conditions.fit_listed(DATASET) is fits


@pytest.mark.parametrize(
    ("wanted", "value", "holds"),
    [
        (None, None, True),
        ("scope", "scope", True),
        ("scope", "Scope", False),
        ("", "", True),
        ("5", 5, True),
        ("5", "5", True),
        ("5.0", 5, False),
        ("true", True, True),
        ("true", "True", True),  # as dservercore 0.22 tells it
        ("true", 1, False),
        ("1", True, False),
        ("null", None, True),
        ('{"b": 1, "a": [2]}', {"a": [2], "b": 1}, True),
        ('{"a": [2]}', "{'a': [2]}", True),
        ("{", "{", True),
        ("[" * 5000, [], False),
    ],
)
def test_annotation_has_a_value_as_text_or_as_json(
    wanted: str | None, value: Any, holds: bool
) -> None:
    assert AnnotationIs("n", wanted).holds({"n": value}) is holds
    assert not AnnotationIs("other", wanted).holds({"n": value})


@pytest.mark.parametrize(
    ("free_text", "has"),
    [
        ("yeast", True),
        ("YEAST nothing", True),
        ("yea", False),
        ("nothing", False),
        ("e-coli", True),
        ("coli-e", False),
        ('"light sheet"', True),
        ('"sheet light"', False),
        ('"light sheet" "ünder"', True),
        ('"light sheet" "nothing"', False),
        ('"light sheet" nothing', True),  # with phrases, words do not count
        ('yeast"', True),
        ("sheet_light", False),
        ('" - "', False),
        ("", False),
    ],
)
def test_words_are_looked_for_as_a_search_does(free_text: str, has: bool) -> None:
    assert has_words(free_text, ["E-coli, and Yeast.", "a light\nsheet; Ünder it"]) is has
