"""The demonstration takes away what it has started, however it is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dserverfs.base import end_signals
from dserverfs.base.mountinfo import find_mounted
from tests.support.mounts import detach
from tests.support.patience import LATE_S

SIGNALS = 1000
EACH_S = 0.001


@pytest.mark.parametrize("number", end_signals.NUMBERS)
def test_demo_that_is_told_to_end_many_times_leaves_no_mount(
    fuse: None, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "shown"
    env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    command = [sys.executable, "-m", "dserverfs", "demo", str(path)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            assert any("Ctrl-C ends it" in line for line in demo.stdout)
            assert find_mounted(path) is not None
            for _ in range(SIGNALS):
                demo.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    demo.wait(EACH_S)
            demo.wait(LATE_S)
            assert find_mounted(path) is None
        finally:
            demo.kill()
            detach(path)
