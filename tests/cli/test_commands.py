"""The commands' names: each is told of, and none is imported for another."""

from __future__ import annotations

import subprocess
import sys
from types import FunctionType

import pytest

from dserverfs import cli
from dserverfs.cli import serve_management, server_actions
from dserverfs.cli.main import main


def test_help_tells_of_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [name for name in told if name in cli.NAMES] == list(cli.NAMES)


@pytest.mark.parametrize("name", cli.NAMES)
def test_each_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])

    assert ended.value.code == 0
    assert f"usage: dserverfs {name}" in capsys.readouterr().out


def test_a_command_imports_no_other() -> None:
    code = (
        "import sys\nfrom dserverfs.cli.main import main\n"
        "try: main(['mount', '--help'])\n"
        "finally: print(*(m for m in sys.modules if m.startswith('dserverfs.cli.')))"
    )

    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    ).stdout

    assert set(said.splitlines()[-1].split()) == {
        "dserverfs.cli.arguments",
        "dserverfs.cli.log_file",
        "dserverfs.cli.main",
        "dserverfs.cli.mount",
        "dserverfs.cli.mount_options",
        "dserverfs.cli.parser",
    }


def test_each_action_of_serve_has_a_function_and_each_function_an_action() -> None:
    functions = {
        value
        for name, value in vars(server_actions).items()
        if isinstance(value, FunctionType)
        and value.__module__ == server_actions.__name__
        and not name.startswith("_")
        and name != "run"
    }

    actions: dict[str, object] = {**server_actions.ACTIONS, **server_actions.OF_DATABASES}

    assert set(actions.values()) == functions
    assert list(actions) == [action.words for action in serve_management.ACTIONS]
