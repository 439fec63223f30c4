"""The man page and the completions, made of the parser: whole, and good for who reads them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.cli import completion, made_files, parser
from dserverfs.cli.main import main
from tests.support.child_processes import spawn

EVERY = list(parser.below(parser.of([])))


def test_man_page_has_every_command_and_option() -> None:
    page = made_files.man_page().replace("\\-", "-")

    assert [each.prog for each in EVERY if f"\n.SS {each.prog}\n" not in page] == []
    for each in EVERY:
        section = page.partition(f"\n.SS {each.prog}\n")[2].partition("\n.S")[0]
        options = [name for action in each.arguments() for name in action.option_strings]
        assert {name for name in options if name not in section} <= {"-h", "--help"}, each.prog


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_man_page_is_shown_without_a_warning() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-cbou"],
        input=made_files.man_page(),
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""
    assert "dserverfs mount dserver://data.example.org/s3/lab ~/lab\n" in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


class Bash:
    """A shell with the completion, whose `dserverfs` prints its arguments."""

    def __init__(self, directory: Path, script: Path) -> None:
        self.home = directory
        self._ours, theirs = os.openpty()
        self._stack = contextlib.ExitStack()
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(directory)}
        command = ["setsid", "--ctty", "--wait", "bash", "--norc", "-i"]
        self._stack.enter_context(
            spawn(
                command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=directory, env=environment
            )
        )
        os.close(theirs)
        self.type("dserverfs() { printf '<%s>' \"$@\"; echo; }; PS1=")
        self.type(f"source {script}; echo ready")
        self._until(b"\nready")

    def completed(self, words: str) -> str:
        """Return what is run when TAB and then Return are typed after `words`."""
        self.type(f"dserverfs {words}\t; echo done")
        said = self._until(b">\r\ndone")
        return said[said.index(b"\n<") + 1 :].partition(b"\r")[0].decode()

    def type(self, text: str) -> None:
        os.write(self._ours, f"{text}\n".encode())

    def _until(self, end: bytes) -> bytes:
        said = b""
        while end not in said:
            said += os.read(self._ours, 1000)
        return said

    def close(self) -> None:
        os.close(self._ours)  # which ends it
        self._stack.close()


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bash]:
    directory = tmp_path_factory.mktemp("bash")
    for name in ("datasets", "data in words", "docs"):
        (directory / name).mkdir()
    (directory / "notes.txt").touch()
    script = directory / "script"
    script.write_text(made_files.completion_of_bash())
    with contextlib.closing(Bash(directory, script)) as shell:
        yield shell


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("moun", "<mount>"),
        ("statu", "<status>"),
        ("mount --foreg", "<mount><--foreground>"),
        ("mount --verify st", "<mount><--verify><strict>"),
        ("serve user pass", "<serve><user><password>"),
        ("serve user add --ad", "<serve><user><add><--admin>"),
        ("freeze datas", "<freeze><datasets/>"),
        ("status not", "<status><notes.txt>"),
        ("mount --cache-dir do", "<mount><--cache-dir><docs/>"),
        ("mount --cache-dir=do", "<mount><--cache-dir=docs/>"),
        ("mount --verify=st", "<mount><--verify=strict>"),
        ("mount dserver://localhost/s3/lab do", "<mount><dserver://localhost/s3/lab><docs/>"),
        ("warm ~/datas", "<warm><HOME/datasets/>"),
        ("freeze 'data in", "<freeze><data in words/>"),
        ("status no-such", "<status><no-such>"),
        ("freeze notes", "<freeze><notes>"),
        ("completion zs", "<completion><zsh>"),
        ("help semant", "<help><semantics>"),
        ("unit automou", "<unit><automount>"),
    ],
)
def test_bash_completes_commands_options_values_and_paths(
    bash: Bash, typed: str, words: str
) -> None:
    assert bash.completed(typed) == words.replace("HOME", str(bash.home))


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_commands_options_values_and_paths(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "notes.txt").touch()
    script = tmp_path / "script.fish"
    script.write_text(made_files.completion_of_fish())
    expected = {
        "statu": {"status"},
        "serve user pass": {"password"},
        "serve user add --ad": {"--admin"},
        "mount --foreg": {"--foreground"},
        "mount --verify st": {"strict"},
        "mount --verify=st": {"--verify=strict"},
        "freeze datas": {"datasets/"},
        "freeze not": set(),
        "status not": {"notes.txt"},
        "warm --from not": {"notes.txt"},
        "completion fi": {"fish"},
        "help semant": {"semantics"},
        "unit automou": {"automount"},
    }
    asked = "; echo END; ".join(f"complete -C 'dserverfs {typed}'" for typed in expected)

    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; {asked}"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""
    parts = done.stdout.split("END\n")
    found = [{line.partition("\t")[0] for line in part.splitlines()} for part in parts]
    assert dict(zip(expected, found, strict=True)) == expected


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_has_every_command_and_option(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0

    script = capsys.readouterr().out
    for each in EVERY:
        options = [name for action in each.arguments() for name in action.option_strings]
        if shell == "fish":
            lines = "\n".join(re.findall(rf"'__dserverfs_at {each.prog}'(.*) -d ", script))
            found = re.findall(r" -(?:l|s) (\S+)", lines)
            assert found == [name.lstrip("-") for name in options]
        else:
            (flags,) = re.findall(rf"^ +'{each.prog}'\) flags='(.*?)'", script, re.MULTILINE)
            assert flags.split() == options


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_is_in_the_language_of_its_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    main(["completion", shell])
    script = capsys.readouterr().out

    for text, is_right in ((script, True), (f"{script}\necho $(\n", False)):
        checked = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (checked.returncode == 0) is is_right, checked.stderr


def test_all_are_written_where_their_readers_look(tmp_path: Path) -> None:
    paths = made_files.write(tmp_path)

    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(written) == sorted(paths)
    assert Path("share/man/man1/dserverfs.1") in paths
