"""One turn of one part, as a process: what it mounts, starts, makes or leaks ends with it.

`python -m tests.soak.turn NAME SEED SECONDS` prints the figures as JSON in its last line of
standard output, and what goes on to standard error. A turn that fails leaves the logs of its
daemons and servers in `soak-NAME-SEED.logs` below the temporary directory, and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from tests.soak.parts import part_named
from tests.soak.turns import Figures, Turn
from tests.support import leftovers
from tests.support.mounts import detach

MAX_LOG_BYTES = 16 << 20  # of each log, its end


def main(name: str, seed: str, seconds: str) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # mounts and servers end as on Ctrl-C
    outside = Path(tempfile.gettempdir())
    run = leftovers.Run.start()  # what a turn that is killed leaves, the next run removes
    os.environ[leftovers.ROOT_VARIABLE] = str(run.root)
    os.environ["TMPDIR"] = tempfile.tempdir = str(run.root)
    figures: Figures = {}
    failed = True
    left: list[str] = []
    try:
        figures = part_named(name).run(Turn(run.root, int(seed), float(seconds)))
        failed = False
    except KeyboardInterrupt:
        print("ended by a signal", file=sys.stderr)
    except Exception:  # noqa: BLE001 - whatever is wrong is said, and all is taken away
        traceback.print_exc()
        keep_logs(run.root, outside / f"soak-{name}-{seed}.logs")
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # to take it away is not interrupted
        left = run.end()
    if failed:
        return 1
    if left:
        print("left behind: " + "; ".join(left), file=sys.stderr)
        return 1
    print(json.dumps(dict(figures)))
    return 0


def keep_logs(root: Path, kept: Path) -> None:
    """Copy the logs below `root`, by their paths, to where they stay."""
    for mount_point in reversed(leftovers.mounts_below(root)):  # whose daemon may be stopped
        detach(mount_point)
    logs = [path for path in root.rglob("*.log") if path.is_file() and path.stat().st_size]
    for log in logs:
        to = kept / log.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "rb") as file, open(to, "wb") as copy:
            file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
            shutil.copyfileobj(file, copy)
    print(f"logs: {kept}" if logs else "no logs", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
