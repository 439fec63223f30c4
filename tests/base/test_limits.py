"""What input is accepted, each limit from both sides."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import NewType

import pytest
from dtoolcore.utils import generate_identifier
from dtoolcore.utils import name_is_valid as dtool_takes
from hypothesis import example, given
from hypothesis import strategies as st

from dserverfs.base import limits
from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import component_is_usable, parse_timestamp, relpath_is_usable


@pytest.mark.parametrize(
    "value",
    [
        1_700_000_000.5,
        "1700000000.5",
        "2023-11-14T22:13:20.500000+00:00",
        "2023-11-14T22:13:20.500000Z",
        "2023-11-14T22:13:20.500",
    ],
)
def test_every_form_of_date_is_understood(value: object) -> None:
    assert parse_timestamp(value) == pytest.approx(1_700_000_000.5)


def test_rfc_1123_date_is_understood() -> None:
    assert parse_timestamp("Tue, 14 Nov 2023 22:13:20 GMT") == 1_700_000_000


@pytest.mark.parametrize("value", [None, True, "soon", {}, ""])
def test_what_is_no_date_is_a_protocol_error(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_timestamp(value)


@pytest.mark.parametrize(
    "relpath",
    [
        "",
        "/etc/passwd",
        "..",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "a" * 256,
        "ä" * 128,
        "\ud800",
    ],
)
def test_hostile_relpath_is_not_usable(relpath: str) -> None:
    assert not relpath_is_usable(relpath)


@pytest.mark.parametrize("relpath", ["a", "a/b", "...", "a b/ü/\n", "a" * 255, "x/" * 100 + "y"])
def test_odd_but_right_relpath_is_usable(relpath: str) -> None:
    assert relpath_is_usable(relpath)


def test_component_with_a_slash_is_not_usable() -> None:
    assert not component_is_usable("a/b")


@pytest.mark.parametrize(
    ("just_inside", "just_outside"),
    [
        ("a" * 255, "a" * 256),
        ("ä" * 127, "ä" * 128),
        ("x/" * 499 + "x", "x/" * 500 + "x"),
        ("/".join(["x" * 255] * 15 + ["x" * 255]), "/".join(["x" * 255] * 15 + ["x" * 254, "y"])),
    ],
    ids=["component", "component in bytes", "depth", "length"],
)
def test_relpath_has_limits(just_inside: str, just_outside: str) -> None:
    assert relpath_is_usable(just_inside)
    assert not relpath_is_usable(just_outside)


@given(st.text(st.sampled_from("aZ09-_. é/\n"), max_size=82))
@example("a" * 80)
@example("a" * 81)
@example("a\n")
def test_name_is_valid_if_dtool_takes_it_and_it_is_one_line(name: str) -> None:
    taken = dtool_takes(name) and not name.endswith("\n")  # its pattern ends in "$"

    assert limits.name_is_valid(name) == bool(taken)


@pytest.mark.parametrize(
    "moment_s",
    [limits.FIRST_DATE_S, -11_644_473_600, -1, 0, 1e10, 9_300_000_000, limits.LAST_DATE_S],
)
def test_dates_of_the_years_1_to_9999_are_taken_in_every_form(moment_s: float) -> None:
    assert parse_timestamp(moment_s) == moment_s
    assert parse_timestamp(str(moment_s)) == moment_s


@pytest.mark.parametrize(
    "moment",
    [
        math.nextafter(limits.FIRST_DATE_S, -math.inf),
        math.nextafter(limits.LAST_DATE_S, math.inf),
        1e300,
        10**400,
        math.nan,
        math.inf,
        "nan",
        "-inf",
        "1e999",
        "9" * 5000,
        "0001-01-01T00:00:00+14:00",
        "Mon, 99 Nov 99999 00:00:00 +9999999",
    ],
)
def test_other_dates_are_refused(moment: object) -> None:
    with pytest.raises(ProtocolError) as refusal:
        parse_timestamp(moment)

    assert len(str(refusal.value)) < 200


@given(st.floats() | st.integers() | st.text() | st.datetimes().map(str) | st.none())
def test_a_date_is_in_the_range_or_refused(value: object) -> None:
    try:
        moment_s = parse_timestamp(value)
    except ProtocolError:
        return
    assert limits.FIRST_DATE_S <= moment_s <= limits.LAST_DATE_S


@given(st.integers(-(10**22), 10**22))
@example(limits.LAST_SHOWN_NS + 1)
@example(limits.FIRST_SHOWN_NS - 1)
def test_times_are_shown_in_64_bits(moment_ns: int) -> None:
    shown = limits.shown_ns(moment_ns)

    assert -(2**63) <= shown < 2**63
    assert shown == moment_ns or abs(moment_ns) >= 2**63


@pytest.mark.parametrize("size", [0, 1, 2**44, 2**63 - 1])
def test_size_is_usable(size: int) -> None:
    assert limits.size_is_usable(size)


@pytest.mark.parametrize("size", [-1, 2**63, 10**30, True, 1.0, "1", None, math.nan])
def test_size_is_not_usable(size: object) -> None:
    assert not limits.size_is_usable(size)
    assert not limits.count_is_usable(size)


def test_identifier_is_what_dtool_makes() -> None:
    assert limits.is_identifier(generate_identifier("a/b"))
    assert not limits.is_identifier(generate_identifier("a/b").upper())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"[" * 102 + b"]" * 102],
)
def test_text_that_is_no_usable_json_is_a_protocol_error(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="the answer is"):
        limits.parse_json(content, "the answer")


def test_json_may_be_nested_as_deep_as_the_limit() -> None:
    depth = limits.MAX_JSON_DEPTH
    deepest = b"[" * depth + b"]" * depth

    assert limits.parse_json(deepest, "it")
    assert sys.getrecursionlimit() > 2 * depth


Text = NewType("Text", str)


@dataclass
class Sample:
    text: Text
    number: int = 0
    maybe: Text | None = None


@pytest.mark.parametrize(
    "values",
    [
        {"text": "a"},
        {"text": "a", "number": 1},
        {"text": "a", "maybe": "b"},
        {"text": "", "maybe": None},
    ],
)
def test_a_record_is_made_of_values_of_its_types(values: dict[str, object]) -> None:
    assert vars(limits.record_of(Sample, values)).items() >= values.items()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"text": 1},
        {"text": None},
        {"text": "a", "number": "1"},
        {"text": "a", "number": True},
        {"text": "a", "maybe": 1},
        {"text": "a", "other": "b"},
        {"text": "\ud800"},
    ],
)
def test_a_record_is_not_made_of_others(values: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        limits.record_of(Sample, values)
