"""`dserverfs umount`: freezes the datasets that are ready, then unmounts."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dserverfs.cli.arguments import Commands, example, say, seconds

if TYPE_CHECKING:
    from dserverfs.mount.control import Address

EXIT_LEFT = 1


def add(commands: Commands) -> None:
    parser = commands.add_parser("umount", help="freeze what is ready, then unmount")
    parser.description = (
        "Freeze the datasets that are closed and may be frozen, send the changes of frozen"
        " datasets, then unmount. Datasets and changes that are left, because they are open,"
        " failed or took too long, are listed; the next mount has them again. Ctrl-C stops"
        " waiting and unmounts. Exits with 1, unmounted or not, if a dataset that was to be"
        " frozen or a change that was to be sent is not on the server."
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="what to unmount")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for uploads, and then for the daemon; default: 60",
    )
    parser.epilog = example("dserverfs umount ~/lab")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.mount import mountpoint

    return unmount(mountpoint.resolve(arguments.mountpoint), arguments.timeout)


def unmount(path: Path, timeout_s: float) -> int:
    """Freeze, send and unmount; return the exit status, having said what stays. DserverfsError."""
    from dserverfs.base import mountinfo
    from dserverfs.base.errors import DaemonSilent, UsageError
    from dserverfs.cli.mounted import mount_of
    from dserverfs.mount import control, launcher, mountpoint
    from dserverfs.writing.staging.states import State

    mounted = mountinfo.find_mounted(path)
    staged: list[dict[str, Any]] = []
    unsent: list[dict[str, Any]] = []
    answer_timeout_s = min(timeout_s, mountpoint.ANSWER_TIMEOUT_S)
    is_given = False
    with contextlib.ExitStack() as stack:
        daemon = None
        is_ours = mounted is not None and mounted.fstype == mountinfo.FSTYPE
        if is_ours and mountpoint.is_dead(path, answer_timeout_s):
            say(
                f"{path}: its daemon had died; what was staged is kept, and dserverfs status says"
                " where",
                file=sys.stderr,
            )
        elif mounted is not None and (mount := mount_of(mounted)) is not None:
            is_given = mount.is_given
            try:
                control.wait_for_next(mount.address)
                daemon = stack.enter_context(control.process_of(mount.address, answer_timeout_s))
                staged, unsent = _drain(mount.address, timeout_s, answer_timeout_s)
            except DaemonSilent as error:
                raise UsageError(
                    f"{path}: {error}; nothing was frozen or sent, and it is still mounted;"
                    f" fusermount3 -u {path} unmounts it all the same and leaves everything staged"
                ) from error
        _tell_left(staged, unsent)  # also if it cannot be unmounted
        if not is_given:
            launcher.stop(path, timeout_s, daemon)
    if is_given:
        say(f"{path}: stays mounted: the program that mounted it unmounts it", file=sys.stderr)
        return EXIT_LEFT
    # A dataset that is open, or waits for a command, was not to be frozen; the rest was.
    waits = (State.OPEN.value, "unusable")
    late = [dataset for dataset in staged if dataset["state"] not in waits]
    return EXIT_LEFT if late or unsent else 0


def _tell_left(staged: list[dict[str, Any]], unsent: list[dict[str, Any]]) -> None:
    for dataset in staged:
        why = dataset["reason"] or dataset["waits_for"]
        reason = f": {why}" if why else ""
        say(
            f"stays staged: {dataset['base_uri']} {dataset['name']} ({dataset['state']}){reason}",
            file=sys.stderr,
        )
    for change in unsent:
        say(
            f"not sent: {change['name']}/{change['path']}: {change['reason']};"
            f" kept in {change['file']}",
            file=sys.stderr,
        )


def _drain(
    address: Address, timeout_s: float, answer_timeout_s: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Have the daemon freeze what it may; return what stays staged and what is not sent.

    Not sent are changes of frozen datasets that the server refused, or is not there for.
    Raises DaemonSilent.
    """
    from dserverfs.base.progress import Progress
    from dserverfs.cli import mounted
    from dserverfs.cli.progress import ProgressLine
    from dserverfs.mount import control

    def ask(command: str, **parameters: float) -> Iterator[control.Answer]:
        return control.ask(address, {"command": command, **parameters}, answer_timeout_s)

    staged: list[dict[str, Any]] = []
    try:
        with ProgressLine() as line:
            for answer in ask("drain", timeout_s=timeout_s):
                if progress := answer.get("progress"):
                    what = f"{progress['datasets_done']} of {progress['datasets_total']} frozen"
                    uploads = answer.get("uploads") or (0, 0, 0, 0)
                    line.progress(what, Progress(*uploads))
                else:
                    staged = answer["result"]
    except KeyboardInterrupt:
        say(
            "interrupted: unmounts now; what is not frozen stays staged, and the next mount goes"
            " on with it",
            file=sys.stderr,
        )
        staged = mounted.last(ask("pending"))
    for noted in mounted.newer(ask("notes")) or []:
        for note in noted["notes"] if noted["by_itself"] else ():
            say(f"note: {noted['name']}: {note}", file=sys.stderr)
    changes: list[dict[str, Any]] = mounted.last(ask("unsent"))
    return staged, [change for change in changes if change["reason"]]
