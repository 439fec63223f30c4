"""Help of every command and action, and what is said of a misspelt one."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs import cli
from dserverfs.cli import parser
from dserverfs.cli.main import main
from tests.support.pages import TOPICS


def below(parent: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each command and action."""
    for action in parent._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from below(child)


def arguments_of(each: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments that help tells of, but the choice of an action."""
    return [
        action
        for action in each._actions
        if action.help != argparse.SUPPRESS and action.nargs != argparse.PARSER
    ]


EVERY = [parser.of([]), *below(parser.of([]))]
COMMANDS = [each for each in EVERY if each.prog.count(" ") == 1]
OPTIONS = [
    (each.prog.split()[1:], name)
    for each in EVERY
    for action in arguments_of(each)
    for name in action.option_strings
    if len(name) > 4
]


def empty_names() -> Iterator[tuple[list[str], str]]:
    """Yield command lines in which the argument that names something is empty, and its name."""
    for each in EVERY:
        words = each.prog.split()[1:]
        actions = arguments_of(each)
        places = [action for action in actions if not action.option_strings]
        for number, action in enumerate(places):
            if action.nargs != argparse.REMAINDER:
                yield [*words, *"x" * number, ""], str(action.metavar)
        for action in actions:
            if action.option_strings and (action.type is Path or action.metavar in ("DIR", "FILE")):
                yield [*words, action.option_strings[-1], ""], "/".join(action.option_strings)


NAMES = list(empty_names())
NO_LIMITS = ("-1", "nan", "inf", "1e300", "")

each_parser = pytest.mark.parametrize("each", EVERY, ids=lambda each: each.prog)


def refusal_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line that wrong arguments end with."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert told.out == ""
    return line


@each_parser
def test_help_says_what_it_is_for_and_of_each_argument_what_it_does(
    each: argparse.ArgumentParser,
) -> None:
    assert (each.description or "").endswith(".")
    assert [action.dest for action in arguments_of(each) if not action.help] == []


@each_parser
def test_help_tells_each_default(each: argparse.ArgumentParser) -> None:
    nothing: list[object] = [None, False, [], argparse.SUPPRESS]

    defaults = [action for action in arguments_of(each) if action.default not in nothing]

    assert [action.dest for action in defaults if "default" not in str(action.help)] == []


@each_parser
def test_help_fits_80_columns(
    each: argparse.ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert [line for line in each.format_help().splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("each", COMMANDS, ids=lambda each: each.prog)
def test_each_command_has_an_example_that_is_right(each: argparse.ArgumentParser) -> None:
    _, _, examples = each.format_help().partition("\nexample:\n")

    lines = examples.splitlines()
    assert lines
    for number, line in enumerate(lines):  # others may say how to go on
        words = shlex.split(line.removeprefix("  sudo ").partition(" > ")[0])
        assert words[0] == "dserverfs"
        assert number or words[:2] == each.prog.split()
        arguments = parser.of(words[1:]).parse_args(words[1:])
        assert callable(arguments.command)


def test_without_a_command_help_is_shown_as_by_git(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1

    assert capsys.readouterr().out == parser.of([]).format_help()


@pytest.mark.parametrize("name", cli.NAMES)
@pytest.mark.parametrize("at", [0.3, 0.6])
def test_a_command_with_a_letter_too_few_is_recognized(
    name: str, at: float, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = round(len(name) * at)

    line = refusal_of(capsys, name[:cut] + name[cut + 1 :])

    assert f"(did you mean {name}?)" in line


def test_a_misspelt_command_is_told_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal_of(capsys, "stauts") == (
        "dserverfs: there is no command 'stauts' (did you mean status?); see dserverfs --help"
    )


def test_a_misspelt_action_is_told_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal_of(capsys, "serve", "user", "ad") == (
        "dserverfs serve user: there is no action 'ad' (did you mean add?); see dserverfs"
        " serve user --help"
    )


@pytest.mark.parametrize(("words", "name"), OPTIONS, ids=str)
def test_a_misspelt_option_is_told_with_the_right_one(words: list[str], name: str) -> None:
    wrong = name[:4] + name[5:] + "x"
    (each,) = (each for each in EVERY if each.prog.split()[1:] == words)

    assert isinstance(each, parser.Parser)
    assert f" (did you mean {name}?)" in each._unknown([f"{wrong}=value", "more"])


def test_an_option_is_refused_by_the_command_that_it_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refusal_of(capsys, "whoami", "--json", "localhost:1") == (
        "dserverfs whoami: there is no option --json; see dserverfs whoami --help"
    )


def test_too_many_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal_of(capsys, "logout", "one", "two\x1b[2J") == (
        "dserverfs logout: too many arguments: two\\x1b[2J; see dserverfs logout --help"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["umount", "--timeout", "soon", "x"], "'soon' is not a number of seconds;"),
        (["serve", "token", "x", "--days", "1.5"], "argument --days: '1.5' is not a whole number;"),
    ],
)
def test_what_is_no_number_is_told(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in refusal_of(capsys, *words)


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("doctor", "0"),
        *((command, limit) for command in ("doctor", "restart", "umount") for limit in NO_LIMITS),
    ],
)
def test_limit_of_time_is_a_number_of_seconds(
    capsys: pytest.CaptureFixture[str], command: str, limit: str
) -> None:
    said = f"argument --timeout: {limit!r} is not a number of seconds;"

    assert said in refusal_of(capsys, command, "--timeout", limit, "x")


@pytest.mark.parametrize(("words", "named"), NAMES, ids=str)
def test_empty_name_is_none_and_not_the_current_directory(
    capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    """As of a variable that is not set: dserverfs discard "$directory"."""
    assert f"argument {named}: is empty; see " in refusal_of(capsys, *words)


@pytest.mark.parametrize(
    "words", [["find", "--text", "", "h"], ["mount", "-o", "", "h", "p"], ["trace", "echo", ""]]
)
def test_text_may_be_empty(words: list[str]) -> None:
    given = vars(parser.of(words).parse_args(words)).values()

    assert any(value == "" or (isinstance(value, list) and "" in value) for value in given)


@pytest.mark.parametrize("command", ["warm", "verify", "find"])
def test_uri_of_another_kind_is_no_path(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "https://user:secret@data.example.org/x"]) != 0

    err = capsys.readouterr().err
    assert err.startswith("dserverfs: https://data.example.org/x: name a path in a mount, or ")
    assert err.count("\n") == 1


def test_a_wrong_choice_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal_of(capsys, "mount", "--verify", "strickt", "dserver://localhost:1", "x")

    assert "'strickt' is none of off, complete, strict (did you mean strict?)" in line


@pytest.mark.parametrize(
    "words", [["mount"], ["serve", "user"], ["serve", "user", "add"]], ids=" ".join
)
def test_help_shows_a_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for line in (["help", *words], [*words, "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(line)
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)

    assert shown[0] == shown[1]
    assert shown[0].startswith(f"usage: dserverfs {' '.join(words)}")


def test_an_unknown_topic_is_told_with_the_one_that_is_like_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["help", "semantic"]) == 1

    assert "did you mean semantics?" in capsys.readouterr().err


def test_no_topic_has_the_name_of_a_command() -> None:
    assert {path.stem for path in TOPICS} & set(cli.NAMES) == set()


def test_output_whose_stream_is_closed_ends_without_a_word() -> None:
    outputs = []

    class Stream(io.TextIOWrapper):
        def write(self, text: str) -> int:
            outputs.append(sys.stdout)
            return super().write(text)

    with contextlib.redirect_stdout(Stream(io.BytesIO())) as stream, pytest.raises(SystemExit):
        main(["--version"])
    assert outputs[0] is not stream

    stream.close()
    outputs[0].close()  # as Python 3.13 does at its end, which says what went wrong there


@pytest.mark.parametrize(
    ("redirection", "number"), [(">&-", errno.EBADF), (">/dev/full", errno.ENOSPC)]
)
def test_output_that_is_not_written_is_a_failure(redirection: str, number: int) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m dserverfs --version {redirection}"

    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)

    said = f"dserverfs: standard output: cannot be written: {os.strerror(number)}\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_output_has_every_name_whatever_its_encoding() -> None:
    code = "import sys; from dserverfs.cli.main import main; main(sys.argv[1:]); print(sys.argv)"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = subprocess.run(
        [sys.executable, "-c", code, "help", "\u00fc\U0001f600"],
        env=environment,
        capture_output=True,
        text=True,
    )

    assert "\\xfc\\U0001f600: no such topic" in done.stderr
    assert done.stdout == "['-c', 'help', '\\xfc\\U0001f600']\n"


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "<&- 2>&-"])
def test_other_streams_may_be_closed(redirection: str) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m dserverfs --version {redirection}"

    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True)

    assert done.returncode == 0
    assert done.stdout.startswith("dserverfs ")
