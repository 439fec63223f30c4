"""The examples of the page about Python are run, one after the other, as a program of a user."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import dserverfs
from tests.support.programs import Programs

pytest_plugins = ["tests.support.program_fixtures"]

PAGE = Path(dserverfs.__file__).parent / "docs" / "python.rst"
# It has a connection in each thread, which Python 3.13 wants closed by hand.
DISKCACHE = "ignore:unclosed database in <sqlite3.Connection:ResourceWarning"
STANDS_FOR = "lab.example.org/s3/datasets"


def test_examples_do_what_the_page_says(programs: Programs) -> None:
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", PAGE.read_text())
    code = "\n".join(blocks).replace("\n    ", "\n").removeprefix("    ")
    assert code.count(STANDS_FOR) > 5

    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-W", DISKCACHE, "-"],
        input=code.replace(STANDS_FOR, programs.path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "images/fern.raw 3000000" in done.stdout
    assert "fern,0.4\n" in done.stdout
