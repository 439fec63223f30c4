"""Without pyfuse3 and trio everything works but a mount, which says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dserverfs import cli
from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.logins import host_of, password_of
from tests.support.mounts import publish
from tests.support.servers import ServerHandle

WITHOUT_FUSE = """
import sys
sys.modules["pyfuse3"] = sys.modules["trio"] = None
"""
MAIN = """
from dserverfs.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
ONE_COMMAND = WITHOUT_FUSE + MAIN
# Tells status and output of each command line of its argument, which is JSON.
COMMANDS = f"""{WITHOUT_FUSE}
import contextlib, io, json
from dserverfs.cli.main import main
told = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
    told.append((status, said.getvalue()))
print(json.dumps(told))
"""
DTOOL = f"""{WITHOUT_FUSE}
import dtoolcore
base_uri, path = sys.argv[1:]
with dtoolcore.DataSetCreator("without-fuse-by-dtool", base_uri) as creator:
    creator.put_item(path, "item")
    uri = creator.uri
dataset = dtoolcore.DataSet.from_uri(uri)
(identifier,) = dataset.identifiers
print(open(dataset.item_content_abspath(identifier)).read())
"""


class User:
    """Someone with an empty home and no FUSE."""

    def __init__(self, account: Account, home: Path) -> None:
        self._environment = {**account.environment, "HOME": str(home)}

    def run(
        self, code: str, *arguments: str, answer: str = "", **settings: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**self._environment, **settings},
            input=answer,
            capture_output=True,
            text=True,
            check=False,
        )

    def commands(self, *lines: list[str], answer: str = "") -> list[tuple[int, str]]:
        """Return status and output of each command line."""
        done = self.run(COMMANDS, json.dumps(lines), answer=answer)
        assert done.returncode == 0, done.stderr
        return [(status, said) for status, said in json.loads(done.stdout)]


@pytest.fixture
def user(current_user: Account, tmp_path: Path) -> User:
    return User(current_user, tmp_path)


def test_every_command_has_its_help_without_fuse(user: User) -> None:
    told = user.commands(*([name, "--help"] for name in cli.NAMES))

    for name, (status, said) in zip(cli.NAMES, told, strict=True):
        assert status == 0
        assert said.startswith(f"usage: dserverfs {name}")


def test_commands_that_need_no_mount_work_without_fuse(
    server: ServerHandle, user: User, tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path, "without-fuse", {"item": b"content"})
    (uri,) = publish(server.base_uri, server.token, tmp_path / "cache", dataset)
    login = ["login", host_of(server), "--username", server.username]
    lines = [login, ["whoami", host_of(server)], ["unit", "user"], ["cache", "info"]]

    told = user.commands(
        *lines, ["warm", uri], ["verify", uri], ["prove", uri], answer=password_of(server)
    )

    assert [status for status, _ in told] == [0] * len(told), told


def test_dtool_makes_and_reads_datasets_without_fuse(
    server: ServerHandle, user: User, tmp_path: Path
) -> None:
    path = tmp_path / "a file"
    path.write_text("content of it")

    done = user.run(DTOOL, server.base_uri, str(path), DSERVER_TOKEN=server.token)

    assert (done.stdout, done.stderr, done.returncode) == ("content of it\n", "", 0)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["mount", "dserver://localhost:1", "mountpoint"], "mount"),
        (["mount", "--foreground", "dserver://localhost:1", "mountpoint"], "mount"),
        (["demo", "mountpoint"], "demo"),
    ],
)
def test_a_mount_without_fuse_says_in_one_line_what_to_install(
    user: User, words: list[str], extra: str
) -> None:
    done = user.run(ONE_COMMAND, *words)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("dserverfs: mounts need pyfuse3 and trio: install fuse3, ")
    assert line.endswith(f"pip install 'dserverfs[{extra}]'")


@pytest.mark.parametrize("options", [[], ["--foreground"]], ids=["daemon", "foreground"])
def test_a_mount_whose_library_is_broken_says_so(
    fuse: None, user: User, tmp_path: Path, options: list[str]
) -> None:
    """As after an update of the system that took libfuse away."""
    (tmp_path / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open')")
    (tmp_path / "mountpoint").mkdir()
    words = ["mount", *options, "dserver://localhost:1", str(tmp_path / "mountpoint")]

    done = user.run("import sys; sys.path.insert(0, sys.argv.pop(1))" + MAIN, str(tmp_path), *words)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "dserverfs: what mounts need cannot be loaded: libfuse3.so.3: cannot open; dserverfs"
        " doctor says more"
    ]
