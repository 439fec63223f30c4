"""The pages of the project as text: their statements, and what they name in literals."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import dserverfs

PACKAGE = Path(dserverfs.__file__).resolve().parent
ROOT = PACKAGE.parent
TESTS = ROOT / "tests"
TOPICS = sorted((PACKAGE / "docs").glob("*.rst"))
PAGES = [ROOT / "README.rst", ROOT / "CONTRIBUTING.rst", *TOPICS]

_LITERAL = re.compile(r"(?<!`)``(?!`)(.+?)``", re.DOTALL)
_MARK = re.compile(r"\[(test_[^]]*)\]\s*\Z")
_ADORNMENT = re.compile(r"([=\-~^\"'*+#])\1*\Z")
_TABLE_BORDER = re.compile(r"=+( +=+)+\Z")
_REFERENCE = re.compile(r"`([^`<>]+)`_(?!_)")
_TARGET = re.compile(r"^\.\. _([^:]+):", re.MULTILINE)


def bullets(text: str) -> Iterator[str]:
    """Yield each bullet at the margin, in one line."""
    for block in re.split(r"\n(?=- )|\n\n(?! )", text):
        if block.startswith("- "):
            yield " ".join(block.split())


def tests_of(bullet: str) -> list[str]:
    """Return the tests that a bullet ends with, as `test_name` or `test_file::test_name`."""
    mark = _MARK.search(bullet)
    return re.split(r"[,\s]+", mark[1].strip().rstrip(",")) if mark else []


@functools.cache
def tests_there_are() -> dict[str, set[str]]:
    """Return by each test's name the files, without `.py`, that have a test of that name."""
    files = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                files[node.name].add(path.stem)
    return files


def blocks(text: str) -> Iterator[str]:
    """Yield the literal blocks, those after a paragraph that ends with `::`."""
    lines = iter([*text.splitlines(), ""])
    for line in lines:
        if not line.endswith("::") or line.startswith(".. "):
            continue
        indent = len(line) - len(line.lstrip())
        block = []
        for inner in lines:
            if inner.strip() and len(inner) - len(inner.lstrip()) <= indent:
                break
            block.append(inner.strip())
        yield "\n".join(block)


def literals(text: str) -> list[str]:
    """Return what is in double backquotes, each in one line."""
    return [" ".join(found.split()) for found in _LITERAL.findall(text)]


def command_lines(text: str) -> Iterator[str]:
    """Yield what follows `dserverfs` wherever the command is written down, without a comment."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*literals(text), *lines]:
        line = line.partition("  #")[0]
        if found := re.search(r"(?:^|[ (/])dserverfs (?=\S)([^|;&)]*)", line):
            yield found[1].strip()


@functools.cache
def classes_and_functions() -> set[str]:
    """Return the names of the package's classes and functions, of methods as well."""
    return {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    }


@functools.cache
def constants() -> set[str]:
    """Return the assignments at the top of the package's modules, as `NAME = value`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.add(f"{node.targets[0].id} = {ast.unparse(node.value)}")
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                found.add(f"{ast.unparse(node.target)} = {ast.unparse(node.value)}")
    return found


def threads() -> set[tuple[str, str]]:
    """Return the name and the module of each thread or pool of threads of the package."""
    # A thread's name is an argument of its maker, or set afterwards.
    named = re.compile(r'(?:thread_name_prefix=|\bname=f?|thread\.name = )"([a-z -]+?)-?["{]')
    found = set()
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        if "Thread" in source or "threads." in source:
            module = str(path.relative_to(PACKAGE))
            found |= {(name, module) for name in named.findall(source)}
    return found


def faults_of_form(text: str) -> Iterator[str]:
    """Yield each fault of reStructuredText in the part of it that the pages use."""
    lines = text.splitlines()
    titles = set()
    for number, line in enumerate(lines):
        where = f"line {number + 1}"
        if "\t" in line or line != line.rstrip():
            yield f"{where}: a tab, or a space at the end"
        if len(line) > 100:
            yield f"{where}: longer than 100"
        before = lines[number - 1] if number else ""
        if _ADORNMENT.match(line) and len(line) > 2 and before and not before.startswith(" "):
            if _TABLE_BORDER.match(before) or _ADORNMENT.match(before):
                continue
            titles.add(before)
            if len(line) != len(before):
                yield f"{where}: {before!r} has a line of another length below it"
    if text.count("``") % 2:
        yield "an odd number of double backquotes"
    for paragraph in re.split(r"\n\s*\n", text):
        if "::" not in paragraph and paragraph.count("``") % 2:
            yield f"a literal does not end in its paragraph: {paragraph[:60]!r}"
        inner = paragraph.splitlines()
        if paragraph.startswith("- ") and not all(re.match("- |  ", line) for line in inner):
            yield f"a line of a list is not indented: {inner[0]!r}"
        yield from _faults_of_table(inner)
    plain = _LITERAL.sub("", text)
    for reference in _REFERENCE.findall(plain):
        if " ".join(reference.split()) not in {*titles, *_TARGET.findall(text)}:
            yield f"`{reference}`_ leads nowhere"


def _faults_of_table(lines: list[str]) -> Iterator[str]:
    borders = [line for line in lines if _TABLE_BORDER.match(line)]
    if not borders:
        return
    if len(set(borders)) > 1 or len(borders) < 2 or not _TABLE_BORDER.match(lines[-1]):
        yield f"borders of a table differ, or its end is missing: {lines[0]!r}"
    gaps = [found.span() for found in re.finditer(r" +", borders[0])]
    for line in lines:
        if any(line[start:end].strip() for start, end in gaps):
            yield f"a column of a table is too narrow: {line!r}"
