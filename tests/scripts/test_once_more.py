"""What failed beside others is run once more, alone, if it is little; and named in any case."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.once_more import MAX_FILES, MAX_TESTS, are_few

ROOT = Path(__file__).resolve().parents[2]

LATE = """
import pathlib, pytest

@pytest.fixture(scope="module")
def shared():
    if not (been := pathlib.Path(__file__).with_suffix(".been")).exists():
        been.touch()
        raise OSError("it is late")

@pytest.mark.parametrize("number", range(14))
def test_shares(shared, number): pass
"""
RIGHT = "def test_passes(): pass"
FAILS = "def test_fails(): assert 2 + 2 == 5"
SKIPS = """
import pathlib, pytest

def test_skips():
    if (been := pathlib.Path(__file__).with_suffix(".been")).exists():
        pytest.skip("not alone")
    been.touch()
    raise OSError("it is late")
"""


def run(directory: Path, *arguments: str, **files: str) -> tuple[int, list[str]]:
    """Return the exit status and what was said of a run of these files."""
    for name, text in files.items():
        (directory / f"test_{name}.py").write_text(text)
    # Of pytest alone: not with the configuration and the plugins of these tests.
    environment = {
        "PYTEST_ADDOPTS": f"-c /dev/null --rootdir={directory} -p no:cacheprovider -p xdist",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.once_more", *arguments],
        env={**os.environ, **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("test:")]


def test_module_that_could_not_be_set_up_passes_alone_and_all_its_tests_are_named(
    tmp_path: Path,
) -> None:
    status, said = run(
        tmp_path, "-n2", "--dist=loadfile", late=LATE, right="def test_passes(): pass"
    )

    assert (status, len(said)) == (0, 1 + 14)
    assert sorted(said[1:]) == sorted(
        f"test: failed beside others, passed alone: test_late.py::test_shares[{number}]:"
        " OSError: it is late"
        for number in range(14)
    )


def test_what_does_not_pass_alone_fails(tmp_path: Path) -> None:
    status, said = run(tmp_path, late=LATE, fails=FAILS)
    skipped, of_skipped = run(tmp_path, "test_skips.py", skips=SKIPS)

    assert (status, skipped) == (1, 1)
    assert "not passed alone: test_fails.py::test_fails: assert (2 + 2) == 5" in said[1]
    assert "not passed alone: test_skips.py::test_skips: OSError: it is late" in of_skipped[1]


def test_what_fails_in_many_places_is_not_run_again(tmp_path: Path) -> None:
    status, said = run(tmp_path, **{f"late{number}": LATE for number in range(MAX_FILES + 1)})

    assert (status, said) == (1, [])


def test_files_and_tests_are_counted() -> None:
    def failed(files: int, each: int) -> list[str]:
        return [f"{file}.py::test[a::{n}]" for file in range(files) for n in range(each)]

    assert are_few(failed(1, MAX_TESTS))
    assert are_few(failed(MAX_FILES, MAX_TESTS // MAX_FILES))
    assert not are_few(failed(1, MAX_TESTS + 1))
    assert not are_few(failed(MAX_FILES + 1, 1))
    assert not are_few([])
