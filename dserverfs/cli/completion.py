"""`dserverfs completion`: prints the script by which a shell completes command lines."""

from __future__ import annotations

import argparse

from dserverfs.cli.arguments import Commands, example

SHELLS = ("bash", "zsh", "fish")


def add(commands: Commands) -> None:
    parser = commands.add_parser("completion", help="show the script that completes command lines")
    parser.description = (
        "Print the script by which a shell completes commands, options and paths of dserverfs. The"
        " shells find it by themselves where dserverfs is installed for all users; else it is to"
        " be put where they look, or read by their start-up file."
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    parser.epilog = example(
        "dserverfs completion zsh > ~/.zfunc/_dserverfs",
        "dserverfs completion fish > ~/.config/fish/completions/dserverfs.fish",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import made_files

    makers = {
        "bash": made_files.completion_of_bash,
        "zsh": made_files.completion_of_zsh,
        "fish": made_files.completion_of_fish,
    }
    print(makers[arguments.shell](), end="")
    return 0
