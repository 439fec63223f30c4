"""One turn of one part, as a process: what it kills or leaks ends with it.

`python -m tests.soak.turn NAME SEED SECONDS` prints the figures as JSON in its last line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak.parts import part_named
from tests.soak.turns import Turn


def main(name: str, seed: str, seconds: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # mounts and servers end as on Ctrl-C
    directory = Path(tempfile.mkdtemp(prefix=f"soak-{name}-"))
    directory.chmod(0o755)  # for parts that work as another user
    os.environ["TMPDIR"] = str(directory)
    tempfile.tempdir = str(directory)
    try:
        figures = part_named(name).run(Turn(directory, int(seed), float(seconds)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(dict(figures)))


if __name__ == "__main__":
    main(*sys.argv[1:])
