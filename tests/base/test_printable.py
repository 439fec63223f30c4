"""Text of others, fit for a terminal and a log."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.errors import NotFound
from dserverfs.base.printable import (
    MAX_MESSAGE_LETTERS,
    NAMES_IN_MESSAGE,
    PrintableFormatter,
    listed,
    one_line,
    printable,
)
from dserverfs.cli import arguments
from dserverfs.cli.progress import ProgressLine


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


def test_of_many_names_a_few_are_told_and_their_number() -> None:
    assert listed([]) == "none"
    assert listed(["a"]) == "a"
    assert listed(["a"] * NAMES_IN_MESSAGE) == ", ".join("a" * NAMES_IN_MESSAGE)
    assert listed(f"{n}" for n in range(5000)).endswith(", 8, 9 and 4990 more")


def test_message_of_an_error_is_one_line_that_prints() -> None:
    error = NotFound("no \x1b[2Jsuch\nthing \ud800", uri="s3://b/\n")

    assert str(error) == "no \\x1b[2Jsuch\\nthing \\ud800"
    assert error.uri == "s3://b/\n"


def test_log_line_is_one_line_and_so_is_each_of_a_traceback() -> None:
    formatter = PrintableFormatter("%(levelname)s %(message)s")
    try:
        raise ValueError("of\x1b]0;x\x07\u2028others")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("n", logging.ERROR, __file__, 1, "%s fails", ("a\nb\x1b",), info)

    first, *others = formatter.format(record).split("\n")

    assert first == "ERROR a\\nb\\x1b fails"
    assert others[0] == "Traceback (most recent call last):"
    assert others[-1] == "ValueError: of\\x1b]0;x\\x07\\u2028others"


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("UTC", "2026-11-29 12:00:00.250+00:00 x"),
        ("CET-1", "2026-11-29 13:00:00.250+01:00 x"),
        ("IST-5:30", "2026-11-29 17:30:00.250+05:30 x"),
    ],
)
def test_times_of_a_log_have_their_zone(
    monkeypatch: pytest.MonkeyPatch, zone: str, said: str
) -> None:
    record = logging.LogRecord("n", logging.INFO, __file__, 1, "x", (), None)
    record.created = 1795953600.25
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        text = PrintableFormatter("%(asctime)s %(message)s").format(record)
    time.tzset()

    assert text == said


def test_what_a_command_says_prints(capsys: pytest.CaptureFixture[str]) -> None:
    arguments.say("user: \x1b[31mroot")

    assert capsys.readouterr().out == "user: \\x1b[31mroot\n"


def test_progress_prints() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()

    with ProgressLine(terminal) as line:
        line.show("\x1b[1mname")

    assert "\x1b" not in terminal.getvalue()
