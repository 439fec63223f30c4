"""`scripts/mutate` makes the faults it says, and tells which of them no test sees."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of

SOURCES = Path(__file__).parents[2]

TOY = """
IS_OPEN = True


class Box:
    def __init__(self):
        self.things = []

    def add(self, thing):
        if thing is not None and thing > 10:
            raise ValueError("no")
        self.things.append(thing)

    @property
    def largest(self):
        return max(self.things)


def is_open():
    return IS_OPEN


def untested():
    return 1 + 1
"""
TESTS = """
import pytest
from toy import Box, is_open


def test_box():
    box = Box()
    for thing in (1, 5, 3):
        box.add(thing)
    with pytest.raises(ValueError):
        box.add(99)
    assert box.largest == 5


def test_open():
    assert is_open()
"""


@pytest.mark.parametrize(
    ("statement", "faults"),
    [
        ("if a and not b: c()", {"(not b)", "(a)", "a and (b)", "pass"}),
        ("if a: pass", {"not (a)"}),
        ("x = a < b", {"a <= b"}),
        ("x = [y for y in a if y]", {"[y for y in a]"}),
        ("x = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC", {"O_EXCL", "O_CREAT"}),
        ("self.x = min(a, b)", {"pass", "max(a, b)"}),
        ("raise ValueError(1 + 1)", {"pass"}),
        ("logger.warning(1 + 1)", set()),
        ("x: bool = f'{1 + 1}'", set()),
        ("try:\n        x()\n    except OSError:\n        return 1", {"pass", "raise"}),
        ("x = y[1]", {"y[2]"}),
        ("return f(x, daemon=True, other=False)", {"return None", "other=True"}),
        ("a = [1]", {"[2]"}),
    ],
)
def test_faults_of_a_statement(statement: str, faults: set[str]) -> None:
    source = f"def f():\n    {statement}\n"

    mutants = list(mutants_of(source))

    assert len(mutants) >= len(faults)
    for mutant in mutants:
        ast.parse(mutant.source)
        assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(source))
        assert mutant.function == ("f",)
    assert {fault for fault in faults if not any(fault in one.new for one in mutants)} == set()
    assert bool(mutants) == bool(faults)


def test_survivors_are_told_with_the_score(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "test_toy.py").write_text(TESTS)

    ended = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "toy.py", "--tests", "test_toy.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )

    told = [line for line in ended.stdout.splitlines() if line[:2] in ("+ ", "- ") or ": " in line]
    assert told == [
        "toy.py:10 Box.add: survived",
        "- if thing is not None and thing > 10:",
        "+ if (thing > 10):",
        "toy.py:10 Box.add: survived",
        "- if thing is not None and thing > 10:",
        "+ if thing is not None and thing >= 10:",
        "toy.py:10 Box.add: survived",
        "- if thing is not None and thing > 10:",
        "+ if thing is not None and thing > 11:",
        *("toy.py:24 untested: reached by no test", "- return 1 + 1", "+ return None"),
        *("toy.py:24 untested: reached by no test", "- return 1 + 1", "+ return (1 - 1)"),
        *("toy.py:24 untested: reached by no test", "- return 1 + 1", "+ return 2 + 1"),
        *("toy.py:24 untested: reached by no test", "- return 1 + 1", "+ return 1 + 2"),
    ], ended.stdout + ended.stderr
    assert ended.returncode == 1
