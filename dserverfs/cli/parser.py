"""The parser of the command line: one line for an error, with what was probably meant.

Python 3.14's argparse has such hints; its messages are of more lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from dserverfs import __version__, cli
from dserverfs.base.printable import listed, printable
from dserverfs.cli.arguments import Commands

EXIT_USAGE = 2
_PLACES = ("DIR", "FILE")  # what options name
_NUMBERS = {int: "whole number", float: "number"}


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves an example, which is of several lines, as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """A parser, and each of its commands and their actions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse all arguments: of what is left over, the command that it was given tells."""
        arguments, left = super().parse_known_args(args, namespace)
        if left:
            self.error(self._unknown(left))
        return arguments, left

    def error(self, message: str) -> NoReturn:
        """End with one line on standard error."""
        self.exit(EXIT_USAGE, printable(f"{self.prog}: {message}; see {self.prog} --help") + "\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Return an argument's value; argparse would say of a number that it is invalid.

        A name that is empty, as by a variable that is not set, names nothing: as a path it would
        be the current directory.
        """
        if not arg_string and _is_name(action):
            raise argparse.ArgumentError(action, "is empty")
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            kind = _NUMBERS.get(cast(Any, action.type))
            if kind is None:
                raise
            raise argparse.ArgumentError(action, f"{arg_string!r} is not a {kind}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = list(map(str, action.choices))
        meant = did_you_mean(str(value), names)
        if action.nargs == argparse.PARSER:
            self.error(f"there is no {str(action.metavar).lower()} {value!r}{meant}")
        message = f"{value!r} is none of {', '.join(names)}{meant}"
        raise argparse.ArgumentError(action, message)

    def _unknown(self, left: Sequence[str]) -> str:
        """Return what to say of arguments that nothing takes."""
        option = next((word for word in left if word.startswith("-") and len(word) > 1), None)
        if option is None:
            return f"too many arguments: {listed(left)}"
        name = option.partition("=")[0]
        options = [known for action in self.arguments() for known in action.option_strings]
        return f"there is no option {name}{did_you_mean(name, options)}"

    def arguments(self) -> list[argparse.Action]:
        """Return the arguments that help tells of."""
        return [action for action in self._actions if action.help != argparse.SUPPRESS]

    def help_of(self, action: argparse.Action) -> str:
        """Return what help says of an argument."""
        return self._get_formatter()._expand_help(action)

    def usage_within(self, width: int) -> str:
        """Return the form of a command line, in lines of up to `width` letters."""
        formatter = _HelpFormatter(self.prog, width=width)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups, prefix="")
        return formatter.format_help().strip()


def _is_name(action: argparse.Action) -> bool:
    """Return whether an argument names what the command is about, or where something is."""
    if action.option_strings:
        return action.type is Path or action.metavar in _PLACES
    return action.nargs not in (argparse.REMAINDER, argparse.PARSER)


def below(parent: argparse.ArgumentParser) -> Iterator[Parser]:
    """Yield the parser of each command below one, and of its actions after it."""
    for action in parent._actions:
        if action.nargs == argparse.PARSER and isinstance(action.choices, Mapping):
            for child in action.choices.values():
                yield child
                yield from below(child)


def of(arguments: Sequence[str]) -> Parser:
    """Return a parser of the command that the arguments begin with; of all, if of none."""
    parser = Parser(
        prog="dserverfs",
        description="Use the datasets of a dserver as files.",
        epilog="`dserverfs help COMMAND` tells more of a command, `dserverfs help` of all else.",
    )
    parser.add_argument("--version", action="version", version=f"dserverfs {__version__}")
    commands = cast(
        "Commands", parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    )
    for command in cli.named(arguments):
        command.add(commands)
    return parser


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return in brackets which name is most like `word`; empty if none is like it."""
    import difflib  # 3 ms

    like = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {like[0]}?)" if like else ""
