"""The pages say what is so: the tests, commands, options, settings and modules they name exist."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest

from dserverfs import cli
from dserverfs.cli.main import main
from tests.support import pages
from tests.support.pages import PACKAGE, PAGES, ROOT, TOPICS
from tests.test_structure import MAY_IMPORT

# Each bullet of these pages is a promise, which a test keeps.
PROMISES = [path for path in TOPICS if path.stem in {"semantics", "durability", "security"}]
# A literal that begins with one of these directories is a path in the repository.
OURS = {path.name for path in PACKAGE.iterdir()} | {"tests", "scripts", "dserverfs"}
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@functools.cache
def help_of(*words: str) -> str | None:
    """Return the help of a command or one of its actions, if there is such a one."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            main([*words, "--help"])
        except SystemExit as ended:
            is_there = ended.code == 0
    text = said.getvalue()
    return text if is_there and text.startswith(f"usage: dserverfs {' '.join(words)} [") else None


def help_of_line(words: list[str]) -> str | None:
    """Return the help of the innermost action that a command line names."""
    found = None
    for end in range(1, min(3, len(words)) + 1):
        if not re.fullmatch(r"[a-z][a-z0-9-]*", words[end - 1]):
            break
        found = help_of(*words[:end]) or found
    return found


@functools.cache
def every_option() -> set[str]:
    helps = [help_of(name) or "" for name in cli.NAMES]
    for command in ("serve", "cache", "mount-helper"):
        for action in re.findall(r"^    ([a-z0-9-]+) ", help_of(command) or "", re.MULTILINE):
            inner = help_of(command, action) or ""
            helps.append(inner)
            for last in re.findall(r"^    ([a-z0-9-]+) ", inner, re.MULTILINE):
                helps.append(help_of(command, action, last) or "")
    return {option for text in helps for option in OPTION.findall(text)} | {"--version"}


@each_page
def test_page_is_well_formed(path: Path) -> None:
    assert list(pages.faults_of_form(path.read_text())) == []


@pytest.mark.parametrize("path", PROMISES, ids=lambda path: path.name)
def test_each_promise_names_its_test(path: Path) -> None:
    found = list(pages.bullets(path.read_text()))

    assert [bullet for bullet in found if not pages.tests_of(bullet)] == []
    assert len(found) > 10


@pytest.mark.parametrize("path", TOPICS, ids=lambda path: path.name)
def test_tests_that_a_page_names_are_there(path: Path) -> None:
    there = pages.tests_there_are()

    faults = []
    for bullet in pages.bullets(path.read_text()):
        for name in pages.tests_of(bullet):
            file, _, function = name.rpartition("::")
            files = there.get(function, set())
            if not files or (file and file not in files):
                faults.append(f"{name}: no such test; files with one of that name: {files}")
            elif not file and len(files) > 1:
                faults.append(f"{name}: write FILE::{name}, one of {files}")
    assert faults == []


@each_page
def test_commands_that_a_page_names_are_there(path: Path) -> None:
    faults = []
    for line in pages.command_lines(path.read_text()):
        words = line.split()
        told = help_of_line(words)
        if words[0].startswith("-"):
            told = "--help --version"
        elif words[0] in ("COMMAND", "..."):
            continue
        if told is None:
            faults.append(f"dserverfs {line}: no such command")
        elif unknown := set(OPTION.findall(line)) - set(OPTION.findall(told)):
            faults.append(f"dserverfs {line}: {unknown}")
        topics = {"TOPIC", "COMMAND", *(topic.stem for topic in TOPICS)}
        if words[0] == "help" and not set(words[1:]) <= topics:
            faults.append(f"dserverfs {line}: no such page")
    assert faults == []


@each_page
def test_options_that_a_page_names_are_there(path: Path) -> None:
    named = [text for text in pages.literals(path.read_text()) if text.startswith("-")]

    assert [text for text in named if not set(OPTION.findall(text)) <= every_option()] == []


@each_page
def test_files_that_a_page_names_are_there(path: Path) -> None:
    missing = []
    for text in pages.literals(path.read_text()):
        first, slash, _ = text.partition("/")
        is_path = re.fullmatch(r"[\w./-]+", text) is not None
        is_ours = text.endswith(".py") or (slash and first in OURS)
        if is_path and is_ours and not any((root / text).exists() for root in (PACKAGE, ROOT)):
            missing.append(text)
    assert missing == []


@pytest.mark.parametrize("path", TOPICS, ids=lambda path: path.name)
def test_classes_and_functions_that_a_page_names_are_there(path: Path) -> None:
    there = pages.classes_and_functions()

    named = [
        text.removesuffix("()")
        for text in pages.literals(path.read_text())
        if re.fullmatch(r"[A-Z][a-z]\w*|_?[a-z]\w*\(\)", text)
    ]

    assert [name for name in named if name not in there] == []


def test_pages_about_commands_name_every_option() -> None:
    text = "".join(
        path.read_text() for path in TOPICS if path.stem in {"commands", "server", "group"}
    )

    missing = every_option() - set(OPTION.findall(text))
    assert missing - {"-h", "--help", "--version"} == set()


def test_no_option_takes_a_secret() -> None:
    """It would be in the shell's history, and in the list of processes that all users see."""
    secrets = re.compile("password|passwd|secret|credential|token$|token-value|key")

    assert len(every_option()) > 20
    files = {"--tls-key"}  # named, and not given
    assert [option for option in every_option() - files if secrets.search(option)] == []


def test_page_about_settings_names_every_setting() -> None:
    source = (PACKAGE / "settings.py").read_text()
    text = (PACKAGE / "docs/settings.rst").read_text()

    there = set(re.findall(r'"((?:DSERVER|DTOOL)_[A-Z0-9_]+)"', source))
    assert len(there) > 9
    assert {name for name in there if f"``{name}" not in text} == set()


def test_page_about_semantics_names_every_errno_of_the_table() -> None:
    table = "".join(text for text in pages.constants() if text.startswith("ERRNO"))
    text = (PACKAGE / "docs/semantics.rst").read_text()

    # ENOSYS is for the kernel alone, which then asks no more.
    errnos = set(re.findall(r"errno\.(E[A-Z]+)", table))
    assert len(errnos) > 9
    assert {name for name in errnos if name not in text} - {"ENOSYS"} == set()


def test_page_about_architecture_has_the_rules_of_the_house() -> None:
    text = (PACKAGE / "docs/architecture.rst").read_text()

    rows = dict(re.findall(r"^``(\w+)(?:/|\.py)``  +([a-z ]+)$", text, re.MULTILINE))
    rules = {room: others or "nothing" for room, others in MAY_IMPORT.items()}
    assert {room: others for room, others in rules.items() if room != "__main__"} == rows


def test_page_about_architecture_has_every_thread() -> None:
    text = (PACKAGE / "docs/architecture.rst").read_text()

    rows = set(re.findall(r"^``([a-z -]+)`` .*?``([\w/]+\.py)``", text, re.MULTILINE))
    assert pages.threads() - rows == set()
    assert {(name, file) for name, file in rows if name != "trio"} - pages.threads() == set()


def test_readme_names_every_page() -> None:
    text = (ROOT / "README.rst").read_text()

    assert [path.stem for path in TOPICS if f"\n``{path.stem}``" not in text] == []


@pytest.mark.parametrize("path", TOPICS, ids=lambda path: path.name)
def test_constants_that_a_page_names_are_those_of_the_code(path: Path) -> None:
    there = pages.constants()

    named = [text for text in pages.literals(path.read_text()) if re.match(r"[A-Z_]+ = ", text)]

    assert [text for text in named if text not in there] == []


@each_page
def test_settings_that_a_page_names_are_there(path: Path) -> None:
    source = "".join(module.read_text() for module in PACKAGE.rglob("*.py"))

    named = re.findall(r"\b(?:DSERVER|DTOOL)_[A-Z_]*[A-Z]", path.read_text())

    names = {re.sub(r"_(SERVER|NAME)\Z", "", name) for name in named}
    assert {name for name in names if name not in source} == set()


def test_help_lists_the_pages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0

    pages, _, _ = capsys.readouterr().out.partition("\n\n")
    assert [line.split()[0] for line in pages.splitlines()] == [path.stem for path in TOPICS]


@pytest.mark.parametrize("path", TOPICS, ids=lambda path: path.name)
def test_help_shows_a_page_without_the_names_of_tests(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["help", path.stem]) == 0

    told = capsys.readouterr().out
    assert told.startswith(path.read_text().partition("\n")[0])
    assert "[test_" not in told


def test_unknown_topic_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "nothing"]) == 1

    assert f"topics are {TOPICS[0].stem}, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Title\n====\n", "another length"),
        ("A ``literal that\n\ndoes not`` end.\n", "does not end in its paragraph"),
        ("See `Nowhere`_.\n", "leads nowhere"),
        ("==  ==\na   b\nabc d\n==  ==\n", "too narrow"),
        ("==  ==\na   b\n\nc   d\n", "end is missing"),
        ("A \tb\n", "a tab"),
        ("- A bullet that\ngoes on.\n", "not indented"),
    ],
)
def test_page_of_another_form_is_noticed(text: str, fault: str) -> None:
    assert any(fault in found for found in pages.faults_of_form(text))


def test_command_lines_are_found_wherever_they_are() -> None:
    text = (
        "Say ``dserverfs mount URI``::\n\n    cd x && dserverfs umount ~/d  # the end\n"
        "    uri=$(dserverfs freeze DIR)\n\nand ``sudo dserverfs``.\n"
    )

    assert list(pages.command_lines(text)) == ["mount URI", "umount ~/d", "freeze DIR"]


def test_promise_without_a_test_is_noticed() -> None:
    text = "- One.\n  [test_a, test_b::test_c]\n- Two,\n  three.\n\n  More.\n\n- Four. [test_d]\n"

    assert [pages.tests_of(bullet) for bullet in pages.bullets(text)] == [
        ["test_a", "test_b::test_c"],
        [],
        ["test_d"],
    ]
