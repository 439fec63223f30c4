"""`dserverfs help`: commands, and the pages that come with the package, without a network."""

from __future__ import annotations

import argparse
import re

from dserverfs import cli
from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import Commands, example, say

# The tests that hold a statement, each statement's on lines of their own; tests are not installed.
_TESTS = re.compile(r"^ *\[test_[^]]*\]\n", re.MULTILINE)


def add(commands: Commands) -> None:
    parser = commands.add_parser("help", help="read about a topic or a command")
    parser.description = (
        "Show the page about a topic, through the pager on a terminal; or the help of a command, as"
        " dserverfs COMMAND --help does. Without TOPIC: list the topics."
    )
    parser.add_argument(
        "topic", metavar="TOPIC", nargs="*", help="a topic, or a command and its action"
    )
    parser.epilog = example("dserverfs help semantics", "dserverfs help serve user")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    found = pages()
    if not arguments.topic:
        _list(found)
    elif arguments.topic[0] in cli.NAMES:
        _show_command(arguments.topic)
    else:
        _show_page(" ".join(arguments.topic), found)
    return 0


def _list(found: dict[str, str]) -> None:
    width = max(map(len, found), default=0)
    for topic, text in found.items():
        title = text.partition("\n")[0]
        say(f"{topic:{width}}  {title.partition(': ')[2]}")
    say("")
    say("dserverfs help TOPIC shows one of these, dserverfs help COMMAND a command's options;")
    say("dserverfs --help lists the commands.")


def _show_command(words: list[str]) -> None:
    """Show the help of a command or its action; ends the program, as --help does."""
    from dserverfs.cli import parser

    parser.of(words).parse_args([*words, "--help"])


def _show_page(topic: str, found: dict[str, str]) -> None:
    if topic not in found:
        from dserverfs.cli.parser import did_you_mean

        meant = did_you_mean(topic, [*found, *cli.NAMES])
        raise UsageError(
            f"help {topic}: no such topic or command{meant}; topics are {', '.join(found)};"
            " dserverfs --help lists the commands"
        )
    # As resources below: 9 ms, which the list of commands need not wait for.
    import pydoc

    pydoc.pager(_TESTS.sub("", found[topic]))


def pages() -> dict[str, str]:
    """Return the text of each page by its topic, in alphabetical order."""
    from importlib import resources

    files = resources.files("dserverfs").joinpath("docs").iterdir()
    found = {file.name.removesuffix(".rst"): file for file in files if file.name.endswith(".rst")}
    return {topic: found[topic].read_text(encoding="utf-8") for topic in sorted(found)}
