"""The command: arguments in, tables out.

The measuring is done by a second process that cannot leave anything behind: as
root it has mounts and process numbers of its own (unshare), which end with it.
An ordinary user's is asked to end and cleans up itself. It shows nothing: what it
has measured it keeps in a file, and that is shown however it ended.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmark import options, plot, programs, publishing, reading, report
from benchmark.mounts import adopt_orphans
from benchmark.plan import Keeper, Kept, load, partial_of
from dserverfs.server.store import die_with_parent

STOP_TIMEOUT_S = 60
INTERRUPTED = 130
KEPT = "results.json"  # in the directory of the run
_ISOLATED = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def main(argv: Sequence[str]) -> int:
    """Return 0, or 1 if dserverfs failed in a row, or 130 if interrupted."""
    arguments = options.parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.inside is not None:
            return _measure(arguments, arguments.inside)
        if arguments.again:
            return _show_again(arguments)
        return _supervise(argv, arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _measure(arguments: argparse.Namespace, work: Path) -> int:
    adopt_orphans()
    run = {
        options.READ: reading.run,
        options.CHANNEL: reading.run,
        options.PUBLISH: publishing.run,
        options.PROGRAMS: programs.run,
    }[arguments.what]
    paths = [work / KEPT, *([] if arguments.json is None else [arguments.json])]
    run(options.plan_of(arguments), work, Keeper(paths))
    return 0


def _supervise(argv: Sequence[str], arguments: argparse.Namespace) -> int:
    """Run the measuring on a directory that is removed afterwards; show what it measured."""
    work = Path(tempfile.mkdtemp(prefix="dserverfs-bench-", dir=arguments.directory))
    try:
        status = _run(argv, work)
        if (work / KEPT).exists():
            kept = load(work / KEPT)
            _show(kept, arguments)
            status = status or _failed(kept)
        return status
    finally:
        if arguments.json is not None:
            partial_of(arguments.json).unlink(missing_ok=True)
        for _ in range(3):  # what was killed may still be ending
            shutil.rmtree(work, ignore_errors=True)


def _run(argv: Sequence[str], work: Path) -> int:
    """Run this program again, isolated, to do the measuring; return its status."""
    unshare = _unshare()
    process = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
            *(*unshare, sys.executable, "-m", "benchmark", *argv, "--inside", str(work)),
        ],
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        # unshare ignores SIGTERM; its end ends all.
        process.kill() if unshare else process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return INTERRUPTED


# The mounts of others are not held: a daemon whose mount point is gone ends only when no namespace
# has it any more.
_APART = 'umount -i -c -l -a -t fuse.dserverfs 2>/dev/null; exec "$@"'


def _unshare() -> list[str]:
    """Return the command for namespaces of its own, empty if they are not to be had."""
    program = shutil.which("unshare")
    if os.geteuid() != 0 or program is None:
        return []
    command = [program, *_ISOLATED, "sh", "-c", _APART, "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
    return command if tried.returncode == 0 else []


def _show_again(arguments: argparse.Namespace) -> int:
    """Show what one or several runs have kept; return 2 if that cannot be done."""
    parts = []
    for path in arguments.again:
        try:
            parts.append(load(path))
        except (OSError, ValueError) as error:
            print(f"bench: {path}: {error}", file=sys.stderr)
            return 2
    order = [*dict.fromkeys(row for rows in options.ROWS.values() for row in rows)]
    try:
        results = report.merged([part.results for part in parts], order)
    except ValueError as error:
        print(f"bench: the files cannot be one table: {error}", file=sys.stderr)
        return 2
    about = {
        "made_from": [
            {"file": str(p), **k.about} for p, k in zip(arguments.again, parts, strict=True)
        ]
    }
    kept = Kept(results, about)
    if arguments.json is not None:
        Keeper([arguments.json]).keep_all(results, about)
    _show(kept, arguments)
    return _failed(kept)


def _show(kept: Kept, arguments: argparse.Namespace) -> None:
    print(report.as_text(kept.results), end="", flush=True)
    if arguments.plot is not None:
        plot.draw(kept.results, arguments.plot)


def _failed(kept: Kept) -> int:
    return 1 if any(column == kept.results.ours for _, column in kept.results.failed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
