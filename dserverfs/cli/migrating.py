"""`dserverfs serve migrate`: a bucket of the embedded store is copied to another S3 server."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from dserverfs.base.printable import counted
from dserverfs.cli.arguments import say
from dserverfs.cli.progress import ProgressLine, size
from dserverfs.cli.whole_items import EXIT_FAILED, BytesSoFar, Summary, Totals, WholeItem
from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store import migration
from dserverfs.server.store.migration import Migration, Survey, Task
from dserverfs.server.store.settings import ServerSettings


def migrate(
    directory: DataDirectory, arguments: argparse.Namespace, bucket: str, settings: ServerSettings
) -> int:
    """Copy, compare, or tell what there is to do; return the exit status."""
    record = directory.path / f"migration-{bucket}.sqlite"
    with migration.opened(directory.store, bucket, settings, record) as (moving, is_running):
        if not (arguments.dry_run or arguments.verify):
            moving.require_writable()
        with ProgressLine() as line:
            survey = moving.survey(
                lambda what, number: line.show(f"{what}: {counted(number, 'object')}")
            )
        if arguments.dry_run:
            return _tell(moving, survey)
        if arguments.verify:
            return _compare(moving, survey)
        return _copy(moving, survey, is_running=is_running)


def _tell(moving: Migration, survey: Survey) -> int:
    objects, size_in_bytes = survey.waiting
    say(
        f"{counted(objects, 'object')}, {size(size_in_bytes)}: to be copied to {moving.target.name}"
    )
    say(f"there already: {counted(survey.all.objects - survey.waiting.objects, 'object')}")
    if survey.gone:
        say(f"{counted(survey.gone, 'object')} to be deleted there, here no longer")
    return 0


def _compare(moving: Migration, survey: Survey) -> int:
    summary = Summary()
    _run(moving, summary, "comparing", moving.comparisons(), Totals(*survey.all))
    print(summary.text(f"in {moving.target.name} as they have to be", "are not right there"))
    return EXIT_FAILED if summary.failed else 0


def _copy(moving: Migration, survey: Survey, *, is_running: bool) -> int:
    summary = Summary()
    _run(moving, summary, "copying", moving.copies(), Totals(*survey.waiting))
    deleted = moving.finish()
    there = survey.all.objects - survey.waiting.objects
    say(
        f"{counted(summary.items - summary.failed, 'object')} copied to {moving.target.name},"
        f" {there} there already" + (f", {deleted} deleted there" if deleted else "")
    )
    if summary.failed:
        say(
            f"dserverfs: not copied: {counted(summary.failed, 'object')}, see above",
            file=sys.stderr,
        )
        return EXIT_FAILED
    if is_running:
        print(
            "dserverfs serve runs here: to move, stop it, run this again for what was written"
            " meanwhile, and start it with these settings"
        )
    else:
        print("nothing was written meanwhile: start dserverfs serve with these settings")
    return 0


def _run(
    moving: Migration, summary: Summary, what: str, tasks: Iterable[Task], totals: Totals
) -> None:
    """Do the tasks; raises the fault for which they ended."""
    with _stopped_by_signals(moving):
        summary.run(what, _items(tasks), lambda: totals)
    if moving.fault is not None:
        raise moving.fault


@contextmanager
def _stopped_by_signals(moving: Migration) -> Iterator[None]:
    """Have SIGINT and SIGTERM end what is under way, and not only what has not begun."""

    def stop(number: int, frame: FrameType | None) -> None:
        moving.stop()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _items(tasks: Iterable[Task]) -> Iterator[WholeItem]:
    for task in tasks:
        so_far = BytesSoFar()
        yield WholeItem(task.name, task.size_in_bytes, partial(task.work, so_far), so_far)
