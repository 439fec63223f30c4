"""What input is accepted, each limit from both sides."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
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


def test_component_that_utf_8_cannot_hold_is_not_usable() -> None:
    assert not component_is_usable("\ud800")


@pytest.mark.parametrize(
    ("just_inside", "just_outside"),
    [
        ("a" * 255, "a" * 256),
        ("ä" * 127, "ä" * 128),
        ("x/" * 499 + "x", "x/" * 500 + "x"),
        ("/".join(["x" * 255] * 15 + ["x" * 255]), "/".join(["x" * 255] * 15 + ["x" * 254, "y"])),
        ("é" + "/x" * 499, "/".join(["é" * 127] * 15 + ["é" * 127, "é" * 8])),
    ],
    ids=["component", "component in bytes", "depth", "length", "length in bytes"],
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


@pytest.mark.parametrize(
    ("url", "is_usable"),
    [
        *((url, True) for url in ("http://host", "https://host:443/a?b", "http://[::1]:80")),
        *((url, False) for url in (None, 5, "", "host", "ftp://host", "http://", "https://:80")),
        *((url, False) for url in ("http://host:0", "http://host:x", "http://[::1", "//host")),
        ("http://" + "a" * (limits.MAX_TEXT_LENGTH - 7), True),
        ("http://" + "a" * (limits.MAX_TEXT_LENGTH - 6), False),
        ("http://\ud800", False),
    ],
)
def test_url_is_usable_if_it_is_of_a_host_by_http(url: object, is_usable: bool) -> None:
    assert limits.url_is_usable(url) is is_usable


@pytest.mark.parametrize(
    ("hash", "is_usable"),
    [
        *((hash, True) for hash in ("a" * 128, "0", "AbC")),
        *((hash, False) for hash in ("a" * 129, "é", "a\n", 5, None, b"a")),
    ],
)
def test_hash_is_short_and_plain(hash: object, is_usable: bool) -> None:
    assert limits.hash_is_usable(hash) is is_usable


@pytest.mark.parametrize(
    ("text", "is_usable"),
    [
        *((text, True) for text in ("", "é", "a" * 8000, "é" * 8000)),
        *((text, False) for text in ("a" * 8001, "\ud800", 5, None, b"a")),
    ],
)
def test_text_is_short_and_utf_8_can_hold_it(text: object, is_usable: bool) -> None:
    assert limits.is_text(text) is is_usable


@pytest.mark.parametrize(
    ("relpath", "is_kept"),
    [
        *(("a" * 1400, True), ("a" * 1401, False), ("é" * 700, True), ("é" * 701, False)),
        *(("/".join("x" * 500), True), ("/".join("x" * 501), False)),
    ],
)
def test_relpath_that_a_store_can_keep_has_limits_too(relpath: str, is_kept: bool) -> None:
    assert limits.relpath_can_be_stored(relpath) is is_kept


@pytest.mark.parametrize("letter", ["0", "f"])
def test_uuid_is_as_dtoolcore_writes_it(letter: str) -> None:
    uuid = "-".join(letter * length for length in (8, 4, 4, 4, 12))

    assert limits.is_uuid(uuid)
    for other in (uuid + "\n", uuid[:-1], uuid.replace("-", ""), uuid.replace(letter, "F")):
        assert not limits.is_uuid(other)


@pytest.mark.parametrize(
    ("count", "is_usable"),
    [(0, True), (2**32 - 1, True), (2**32, False), (-1, False), (True, False), (1.0, False)],
)
def test_number_of_items_has_limits(count: object, is_usable: bool) -> None:
    assert limits.count_is_usable(count) is is_usable


def test_date_beyond_the_range_becomes_its_end() -> None:
    assert limits.usable_date(5.5) == 5.5
    assert limits.usable_date(-1e300) == limits.FIRST_DATE_S
    assert limits.usable_date(1e300) == limits.LAST_DATE_S


@pytest.mark.parametrize(
    ("kind", "real_bytes"),
    [
        ("MAX_SMALL_ANSWER_BYTES", 40_000 * 100),
        ("MAX_LISTING_PAGE_BYTES", 50_000 * 600),
        ("MAX_LISTING_BYTES", limits.MAX_LISTED_DATASETS * 1000),
        ("MAX_README_BYTES", 10**6),
        ("MAX_README_ANSWER_BYTES", 3 * limits.MAX_README_BYTES),
        ("MAX_ANNOTATIONS_BYTES", 10**7),
        ("MAX_METADATA_BYTES", 60 * 10**6),
        ("MAX_MANIFEST_BYTES", 12 * 10**6 * 170),
        ("MAX_WHOLE_MANIFEST_BYTES", 10**6 * 170),
        ("MAX_ERROR_BYTES", 10_000),
    ],
)
def test_real_answers_are_within_their_limits(kind: str, real_bytes: int) -> None:
    assert real_bytes <= getattr(limits, kind) < 20 * real_bytes


def test_answer_with_urls_has_room_for_each() -> None:
    assert limits.max_urls_bytes(0) == limits.MAX_SMALL_ANSWER_BYTES
    assert limits.max_urls_bytes(1000) - limits.max_urls_bytes(0) >= 1000 * 700


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *(("a", "'a'"), (5, "5"), (1.5, "1.5"), (True, "True"), (None, "None")),
        *(([1], "a list"), ({}, "a dict"), (b"a", "a bytes")),
        *(([10**5000], "a list"), ("a" * 200, "'" + "a" * 99)),
    ],
    ids=range(10),
)
def test_value_of_others_is_quoted_in_short(value: object, said: str) -> None:
    assert limits.quoted(value) == said
    assert limits.quoted(10**5000) == "a number of thousands of digits"


@pytest.mark.parametrize("value", ["1", "[]", "{}"])
@pytest.mark.parametrize("encode", [str, str.encode])
def test_json_of_very_many_short_values_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, encode: Callable[[str], str | bytes]
) -> None:
    monkeypatch.setattr(limits, "MAX_SHORT_VALUES", 10)
    short = [encode(f"[{','.join([value] * number)}]") for number in range(1, 30)]
    counted = [(1 if value == "1" else 2) * number for number in range(1, 30)]
    longer = encode(f"[{','.join([value.ljust(32)] * 29)}]")

    assert len(limits.parse_json(longer, "it")) == 29, "each has its bytes"
    for text, values in zip(short, counted, strict=True):
        if values <= 10 + len(text) // 16:
            limits.parse_json(text, "it")
        else:
            with pytest.raises(ProtocolError, match="more values than it may have"):
                limits.parse_json(text, "it")


@pytest.mark.parametrize("form", [('{"a":', "}"), ("[", "]")])
def test_depth_of_lists_and_objects_is_counted(form: tuple[str, str]) -> None:
    begin, end = form
    for depth in (1, 98, 99):
        limits.parse_json(begin * (depth - 1) + "[1, {}, 2]" + end * (depth - 1), "it")
    with pytest.raises(ProtocolError, match="more than 100 deep"):
        limits.parse_json(begin * 100 + "[]" + end * 100, "it")


@pytest.mark.parametrize(
    "error",
    [
        *(ZeroDivisionError(), AttributeError(), KeyError("k"), IndexError(), RecursionError()),
        *(TypeError(), ValueError(), UnicodeDecodeError("utf-8", b"", 0, 1, "")),
    ],
)
def test_value_that_cannot_be_taken_apart_is_one_error(error: Exception) -> None:
    with pytest.raises(ProtocolError, match=r"^the answer cannot be read: "), understood():
        raise error


@pytest.mark.parametrize("error", [OSError(), MemoryError(), KeyboardInterrupt()])
def test_other_errors_are_not_the_answers(error: BaseException) -> None:
    with pytest.raises(type(error)), understood():
        raise error


def understood() -> contextlib.AbstractContextManager[None]:
    return limits.understood("the answer")


@dataclass
class Dated:
    moment_s: float


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        *((5, True), (5.5, True), (limits.LAST_DATE_S, True)),
        *((math.nan, False), (1e300, False), (True, False), ("5", False), (None, False)),
    ],
)
def test_a_record_s_moment_is_a_usable_date(value: object, is_taken: bool) -> None:
    with contextlib.nullcontext() if is_taken else pytest.raises(TypeError, match="moment_s"):
        assert limits.record_of(Dated, {"moment_s": value}).moment_s == value
