"""The man page and the shells' completions, made of the parser.

Used by setup.py, when dserverfs is built, and by `dserverfs completion`. Without shtab and
argparse-manpage, which a build would have to fetch; the man page of the latter lacks the examples.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dserverfs import __version__, cli
from dserverfs.cli import help as topics
from dserverfs.cli import parser, unit

# By the word that stands for an argument in help.
_DIRECTORIES = frozenset({"DIR", "DIRECTORY", "MOUNTPOINT"})
_FILES = frozenset({"FILE", "PATH", "BASE", "DATASET"})
_WIDTH = 72  # of what man(1) indents by 7

_BEGINNING = f"""\
.TH DSERVERFS 1 "" "dserverfs {__version__}" "User Commands"
.ad l
.SH NAME
dserverfs \\- use the dtool datasets of a dserver as files
.SH SYNOPSIS
.B dserverfs
.I COMMAND
[\\fIARGUMENT\\fR ...]
.SH DESCRIPTION
"""
_DESCRIPTION = """\
A dserver keeps the catalogue of a group's dtool datasets, and signs URLs of the store that has
them. With a token of it dserverfs shows datasets as files, makes new ones from directories that
are copied into the mount, and serves the URIs dserver://HOST[:PORT]/s3/BUCKET/UUID to dtool."""
_END = """\
.SH EXIT STATUS
.TP
0
success
.TP
1
a failure, of which one line on standard error tells
.TP
2
wrong arguments
.SH SEE ALSO
.BR fusermount3 (1),
.BR mount (8)
.PP
"""


_BASH = """\
# dserverfs(1) completion for bash
_dserverfs() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local command=dserverfs each number flags='' choices='' paths=''
    for ((number = 1; number < COMP_CWORD; number++)); do
        each="$command ${COMP_WORDS[number]}"
        case "$each" in
            COMMANDS) command=$each ;;
        esac
    done
    # An option's value after `=`, which bash takes for a word.
    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD-2]}
    [[ $word == = ]] && word=''
    case "$command $before" in
CASES
    esac
    [[ $word == -* ]] && choices=$flags paths=''
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    [[ -z $paths ]] || compopt -o "$paths"
}
complete -F _dserverfs dserverfs
"""
_ZSH = """\
#compdef dserverfs
_dserverfs() {
    local word=$words[CURRENT] before=$words[CURRENT-1]
    local command=dserverfs each number flags='' choices='' paths=''
    for ((number = 2; number < CURRENT; number++)); do
        each="$command $words[number]"
        case "$each" in
            COMMANDS) command=$each ;;
        esac
    done
    case "$command $before" in
CASES
    esac
    [[ $word == -* ]] && choices=$flags paths=''
    compadd -- ${=choices}
    case "$paths" in
        dirnames) _directories ;;
        default) _files ;;
    esac
}
if [[ $funcstack[1] == _dserverfs ]]; then
    _dserverfs "$@"
else
    compdef _dserverfs dserverfs
fi
"""

_FISH = """\
# dserverfs(1) completion for fish
set -g __dserverfs_commands COMMANDS
function __dserverfs_at
    set -l command dserverfs
    for each in (commandline -opc)[2..]
        if contains -- "$command $each" $__dserverfs_commands
            set command "$command $each"
        end
    end
    test "$command" = "$argv"
end
complete -c dserverfs -f
CASES
"""
_FISH_PATHS = {"dirnames": " -a '(__fish_complete_directories)'", "default": " -F", "": ""}


def write(directory: Path) -> list[Path]:
    """Write all files below a directory, as MADE has them; return their paths below it."""
    for path, text in MADE.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text(), "utf-8")
    return list(MADE)


def completion_of_bash() -> str:
    """Return the script by which bash completes command lines."""
    commands, cases = _commands(), _cases()
    return _BASH.replace("COMMANDS", commands).replace("CASES", cases)


def completion_of_zsh() -> str:
    """Return the function by which zsh does; for `source`, and for a file of $fpath."""
    commands, cases = _commands(), _cases()
    return _ZSH.replace("COMMANDS", commands).replace("CASES", cases)


def completion_of_fish() -> str:
    """Return the commands by which fish does."""
    commands = " ".join(f"'{each.prog}'" for each in parser.below(parser.of([])))
    return _FISH.replace("COMMANDS", commands).replace("CASES", "\n".join(_lines_of_fish()))


def _lines_of_fish() -> Iterator[str]:
    """Yield a line for each option, and one for all other arguments of a command."""
    every = parser.of([])
    for each in (every, *parser.below(every)):
        begin = f"complete -c dserverfs -n '__dserverfs_at {each.prog}'"
        positional = [action for action in each.arguments() if not action.option_strings]
        if positional:
            yield f"{begin}{_values_in_fish(_Completed.of(each, positional))}"
        for action in each.arguments():
            names = "".join(
                f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
                for name in action.option_strings
            )
            if names:
                needs = "" if action.nargs == 0 else " -r"
                value = "" if not needs else _values_in_fish(_Completed.of(each, [action]))
                about = each.help_of(action).replace("\\", "\\\\").replace("'", "\\'")
                yield f"{begin}{names}{needs}{value} -d '{about}'"


def _values_in_fish(completed: _Completed) -> str:
    choices = f" -a '{' '.join(completed.choices)}'" if completed.choices else ""
    return f"{choices}{_FISH_PATHS[completed.paths]}"


class _Completed(NamedTuple):
    """What can be in the place of an argument; nothing that is known, if both are empty."""

    paths: str = ""  # dirnames or default, as bash calls directories and all files
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, each: parser.Parser, actions: Iterable[argparse.Action]) -> _Completed:
        """Return it for some arguments of a command together."""
        kinds: set[str] = set()
        choices: list[str] = []
        for action in actions:
            kinds.update(re.findall("[A-Z]+", _value_of(action)))
            choices += map(str, action.choices or ())
            if not action.option_strings and not action.choices:
                choices += _known(each.prog)
        paths = "default" if kinds & _FILES else "dirnames" if kinds & _DIRECTORIES else ""
        return cls(paths, tuple(choices))

    def __str__(self) -> str:
        parts = [f"choices='{' '.join(self.choices)}'"] if self.choices else []
        return " ".join([*parts, f"paths={self.paths}"] if self.paths else parts) or ":"


def _known(command: str) -> list[str]:
    """Return the values of a command's argument that are not in its parser."""
    if command == "dserverfs help":
        return [*topics.pages(), *cli.NAMES]
    return list(unit.units()) if command == "dserverfs unit" else []


def _commands() -> str:
    """Return the pattern of all commands and actions."""
    return " | ".join(f"'{each.prog}'" for each in parser.below(parser.of([])))


def _cases() -> str:
    """Return the cases of `command before` in a shell, which set `paths`, `choices`, `flags`."""
    every = parser.of([])
    values: dict[str, list[str]] = {}
    others = []
    for each in (every, *parser.below(every)):
        options = [action for action in each.arguments() if action.option_strings]
        for action in options:
            if action.nargs != 0:
                places = [f"'{each.prog} {name}'" for name in action.option_strings]
                values.setdefault(str(_Completed.of(each, [action])), []).extend(places)
        positional = [action for action in each.arguments() if not action.option_strings]
        flags = " ".join(name for action in options for name in action.option_strings)
        does = f"flags='{flags}' {_Completed.of(each, positional)}".removesuffix(" :")
        others.append(f"            '{each.prog}') {does} ;;")
    lines = [f"        {' | '.join(places)}) {does} ;;" for does, places in values.items()]
    return "\n".join([*lines, '        *) case "$command" in', *others, "        esac ;;"])


def man_page() -> str:
    """Return dserverfs(1), in the language of man(7)."""
    parts = [_BEGINNING, _lines(_DESCRIPTION), ".SH COMMANDS\n"]
    parts += map(_section, parser.below(parser.of([])))
    pages = ", ".join(f"dserverfs help {topic}" for topic in topics.pages())
    return "".join([*parts, _END, _lines(f"{pages}.")])


def _section(each: parser.Parser) -> str:
    """Return what is said of one command or action."""
    said = [
        f".SS {_escaped(each.prog)}\n",
        f".nf\n{_lines(each.usage_within(_WIDTH))}.fi\n.PP\n",
        _lines(str(each.description)),
    ]
    for action in each.arguments():
        if action.nargs != argparse.PARSER and not isinstance(action, argparse._HelpAction):
            names = ", ".join(action.option_strings)
            value = "" if action.nargs == 0 else f"\\fI{_escaped(_value_of(action))}\\fR"
            name = " ".join(filter(None, [f"\\fB{_escaped(names)}\\fR" if names else "", value]))
            said.append(f".TP\n{name}\n{_lines(each.help_of(action))}")
    if each.epilog:
        title, _, examples = each.epilog.partition("\n")
        said.append(f".PP\n{_lines(title)}.PP\n.nf\n{_lines(textwrap.dedent(examples))}.fi\n")
    return "".join(said)


def _value_of(action: argparse.Action) -> str:
    """Return what stands for the value of an argument."""
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _lines(text: str) -> str:
    """Return lines that begin with none of man(7)'s own marks."""
    return "".join(re.sub(r"^([.'])", r"\\&\1", _escaped(line)) + "\n" for line in text.split("\n"))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


# Where they are below the directory that Python is installed to, as man(1) and the shells look.
MADE: dict[Path, Callable[[], str]] = {
    Path("share/man/man1/dserverfs.1"): man_page,
    Path("share/bash-completion/completions/dserverfs"): completion_of_bash,
    Path("share/zsh/site-functions/_dserverfs"): completion_of_zsh,
    Path("share/fish/vendor_completions.d/dserverfs.fish"): completion_of_fish,
}
