"""`dserverfs discard`: deletes a staged dataset, or a change that is not sent."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dserverfs.cli.arguments import Commands, example, has_terminal, say, says_yes

EXIT_KEPT = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "discard", help="delete a dataset that is not frozen yet, or a change that is not sent"
    )
    parser.description = (
        "Delete, for good, the staged dataset at PATH and everything in it; or the unsent change"
        " of PATH, a file of a frozen dataset. On a terminal it asks first."
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="a dataset or a file, in a mount")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.epilog = example("dserverfs discard ~/lab/my-results")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import mounted

    place = mounted.find(arguments.path)
    # Without a terminal there is nobody to ask: scripts name what they mean.
    if not arguments.yes and has_terminal():
        question = _question(arguments.path, mounted.last(place.ask("status")))
        if question is not None and not says_yes(question):
            say("nothing was discarded")
            return EXIT_KEPT
    say(f"discarded: {mounted.last(place.ask('discard'))}")
    return 0


def _question(path: Path, facts: Mapping[str, Any]) -> str | None:
    """Return what to ask; None if there is nothing to discard, which the daemon says."""
    from dserverfs.cli.status_text import amount_of_staged

    if "number_of_items" in facts:
        amount = amount_of_staged(facts)
        return f"Delete {facts['name']} for good, with {amount}, which no server has?"
    if facts.get("unsent"):
        return f"Delete what was written to {path} and is not sent?"
    return None
