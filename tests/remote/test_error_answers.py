"""The cause that a message names: one that an error names itself, and no other."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.remote.error_answers import root_cause

WAYS = ("cause", "reason", "first argument", "second argument")


class Named(Exception):
    """An error of a library that may name its cause as `reason`."""

    reason: BaseException | None = None


def around(inner: BaseException, way: str) -> BaseException:
    """Return an error that names `inner` as its cause, raised while another one was handled."""
    arguments: list[object] = ["outer"]
    if way == "first argument":
        arguments.insert(0, inner)
    elif way == "second argument":
        arguments.append(inner)
    outer = Named(*arguments)
    if way == "reason":
        outer.reason = inner
    try:
        try:
            raise sqlite3.OperationalError("unrelated: database is locked")
        except sqlite3.OperationalError:
            if way == "cause":
                raise outer from inner
            raise outer  # noqa: B904 - as libraries do
    except Named as error:
        return error


@given(ways=st.lists(st.sampled_from(WAYS), max_size=6))
def test_cause_is_the_innermost_that_is_named_and_never_what_was_handled(ways: list[str]) -> None:
    try:
        raise sqlite3.OperationalError("unrelated: disk I/O error")
    except sqlite3.OperationalError:
        error: BaseException = ConnectionRefusedError(111, "Connection refused")
        error.__context__ = sqlite3.OperationalError("unrelated: disk I/O error")
    for way in ways:
        error = around(error, way)

    assert root_cause(error) == "Connection refused"


def test_errors_that_name_each_other_have_an_end() -> None:
    one, other = Named("one"), Named("other")
    one.reason, other.reason = other, one

    assert root_cause(one) in ("one", "other")


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError(), "ValueError"), (ValueError("a\x1b\nb"), "a b")]
)
def test_cause_without_a_text_or_with_any_is_one_line(error: Exception, told: str) -> None:
    assert root_cause(error) == told
