"""Each part of `scripts/soak` works: it has one short turn."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.soak.parts import PARTS
from tests.soak.turns import Part


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_part_has_a_short_turn(part: Part) -> None:
    command = [sys.executable, "-m", "tests.soak.turn", part.name, "1", "0"]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures
    assert all(figures.values()), f"nothing was done: {figures}"
