"""Text of others, fit for a terminal and a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.printable import MAX_MESSAGE_LETTERS, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 名", "plain é 名"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("txt\u202egpj.exe", "txt\\u202egpj.exe"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\ud800", "\\ud800"),
        ("a\0", "a\\x00"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_everything_becomes_one_line_that_prints(text: str) -> None:
    for shown in (printable(text), one_line(text)):
        assert shown.isprintable()
        shown.encode("utf-8")
    assert printable(printable(text)) == printable(text)


def test_a_long_text_loses_its_middle() -> None:
    shown = printable("a" * 80_000 + "z")

    assert len(shown) < MAX_MESSAGE_LETTERS + 10
    assert shown.startswith("aaa")
    assert shown.endswith("z")
