"""Each part of `scripts/soak` works: it has one short turn."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.soak.parts import PARTS
from tests.soak.turns import Part
from tests.support.child_processes import spawn

TURN_TIMEOUT_S = 250.0


@pytest.mark.parametrize(
    "part", [part for part in PARTS if part.has_short_turn], ids=lambda part: part.name
)
def test_part_has_a_short_turn(part: Part) -> None:
    command = [sys.executable, "-X", "faulthandler"]
    command += ["-m", "tests.soak.turn", part.name, "1", "0"]

    with spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as turn:
        try:
            out, err = turn.communicate(timeout=TURN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            turn.send_signal(signal.SIGABRT)  # it prints what each of its threads does
            out, err = turn.communicate()

    assert turn.returncode == 0, (out + err).decode()
    figures = json.loads(out.splitlines()[-1])
    assert figures
    assert all(figures.values()), f"nothing was done: {figures}"
