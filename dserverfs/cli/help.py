"""`dserverfs help`: the pages that come with the package, readable without a network."""

from __future__ import annotations

import argparse
import re

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import Commands, say

# The tests that hold a statement, each statement's on lines of their own; tests are not installed.
_TESTS = re.compile(r"^ *\[test_[^]]*\]\n", re.MULTILINE)


def add(commands: Commands) -> None:
    parser = commands.add_parser("help", help="read about a topic")
    parser.description = (
        "Show the page about TOPIC, through the pager on a terminal. Without TOPIC: list the"
        " topics. The options of a command are shown by: dserverfs COMMAND --help."
    )
    parser.add_argument("topic", metavar="TOPIC", nargs="?")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    pages = _pages()
    if arguments.topic is None:
        width = max(map(len, pages), default=0)
        for topic, text in pages.items():
            title = text.partition("\n")[0]
            say(f"{topic:{width}}  {title.partition(': ')[2]}")
        return 0
    if arguments.topic not in pages:
        raise UsageError(
            f"help {arguments.topic}: no such topic; there are: {', '.join(pages)}. The options of"
            " a command are shown by: dserverfs COMMAND --help"
        )
    # As resources below: 9 ms, which the list of commands need not wait for.
    import pydoc

    pydoc.pager(_TESTS.sub("", pages[arguments.topic]))
    return 0


def _pages() -> dict[str, str]:
    """Return the text of each page by its topic, in alphabetical order."""
    from importlib import resources

    files = resources.files("dserverfs").joinpath("docs").iterdir()
    pages = {file.name.removesuffix(".rst"): file for file in files if file.name.endswith(".rst")}
    return {topic: pages[topic].read_text(encoding="utf-8") for topic in sorted(pages)}
