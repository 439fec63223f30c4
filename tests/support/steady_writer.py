"""Makes dataset after dataset in a mount until it is ended or fails, and notes what is safe.

A program: `python -m tests.support.steady_writer MOUNTPOINT PROMISES PREFIX SEED`, which
notes in the list of `tests.support.promises`. One file of each dataset is open until all
others are closed, so none is complete before the last line about it.

    --counts N...   how many files a dataset may have
    --synced 0.1    how many of the files are synced before they are closed
    --freeze 0.5    how many datasets are frozen by command, then changed; others freeze
                    by themselves

SIGTERM ends it when the dataset at hand is made: one that is left by a program that ends
counts as complete.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import itertools
import os
import random
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from tests.support.promises import Notes
from tests.support.synced_files import WAYS

KEPT_OPEN = "kept-open"
MADE_BY = "the process that made a dataset"
README = "README.yml"
FREEZE = "user.dserverfs.freeze"
MOUNT_IS_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def contents_of(name: str, count: int) -> dict[str, bytes]:
    """Return a dataset's planned files, the same for the same name."""
    dice = random.Random(f"{name}/{count}")
    files = {
        f"{i % 4}/{i:03}": dice.randbytes(dice.choice([0, 10, 5000, 70_000])) for i in range(count)
    }
    return {**files, KEPT_OPEN: dice.randbytes(3000)}


def md5_of(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {relpath: hashlib.md5(data).hexdigest() for relpath, data in contents.items()}


def write(
    directory: Path,
    contents: Mapping[str, bytes],
    notes: Notes,
    *,
    besides: Collection[str] = (),
    synced: float = 1.0,
) -> None:
    """Write the files of a dataset but those in `besides`; note each when it is closed."""
    dice = random.Random(directory.name)
    left = {relpath: data for relpath, data in contents.items() if relpath not in besides}
    mount = os.stat(directory).st_dev

    def note(relpath: str, data: bytes) -> None:
        # Not in the directory below a mount that is gone.
        assert os.stat(directory / relpath).st_dev == mount
        notes.note(directory.name, closed=relpath, size=len(data))

    with contextlib.ExitStack() as last:
        if KEPT_OPEN in left:
            file = last.enter_context((directory / KEPT_OPEN).open("wb"))
            file.write(left.pop(KEPT_OPEN))
            file.flush()
            if dice.random() < synced:
                os.fsync(file.fileno())
        for relpath, data in left.items():
            path = directory / relpath
            path.parent.mkdir(exist_ok=True)
            if dice.random() < synced:
                WAYS[dice.choice(sorted(WAYS))](path, data)
            else:
                path.write_bytes(data)
            note(relpath, data)
    if KEPT_OPEN not in besides:
        note(KEPT_OPEN, contents[KEPT_OPEN])


def freeze(directory: Path, notes: Notes) -> bool:
    """Freeze by command; return whether that was done."""
    try:
        os.setxattr(directory, FREEZE, b"1")
    except OSError as error:
        if error.errno in MOUNT_IS_DEAD:
            raise
        return False  # server or store is away: it is tried again by itself
    notes.note(directory.name, frozen=True)
    return True


def change(directory: Path, number: int, notes: Notes) -> None:
    """Change README and tags of a frozen dataset; raises OSError."""
    name, text = directory.name, f"name: {directory.name}\nchange: {number}\n"
    notes.note(name, tried={README: text})
    new = directory / f".{README}.{number}"
    with new.open("w") as file:
        file.write(text)
    os.replace(new, directory / README)
    notes.note(name, changed={README: text})
    tag = f".dtool/tags/tag-{number}"
    notes.note(name, tried={tag: ""})
    with (directory / tag).open("wb") as file:
        os.fsync(file.fileno())
    notes.note(name, changed={tag: ""})


def make(mountpoint: Path, name: str, notes: Notes, options: argparse.Namespace) -> None:
    """Make one dataset."""
    dice = random.Random(name)
    contents = contents_of(name, dice.choice(options.counts))
    notes.note(name, plan=md5_of(contents))
    directory = mountpoint / name
    directory.mkdir()
    try:
        write(directory, contents, notes, synced=options.synced)
    except OSError as error:
        # Server and store may be away: what is staged needs neither.
        if error.errno not in MOUNT_IS_DEAD:
            raise AssertionError(f"{name}: cannot be written: {error}") from error
        raise
    if dice.random() < options.freeze and freeze(directory, notes):
        with contextlib.suppress(OSError):  # of the server: it is away, or slow
            for number in range(dice.randrange(3)):
                change(directory, number, notes)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("promises", type=Path)
    parser.add_argument("prefix")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 30, 60])
    parser.add_argument("--synced", type=float, default=0.1)
    parser.add_argument("--freeze", type=float, default=0.0)
    parser.add_argument("--record", type=Path, help="of the disk that all of it is on")
    options = parser.parse_args()
    notes = Notes(options.promises, options.record)
    asked_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    for number in itertools.count():
        if asked_to_end:
            return
        # Each by a process with a session of its own, or it would wait for this one to end.
        child = os.fork()
        if child == 0:
            os.setsid()
            make(options.mountpoint, f"{options.prefix}-{number:03}", notes, options)
            sys.exit()
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):  # SIGBUS: it wrote to a file by way of its memory
            sys.exit(f"{MADE_BY} was ended by {signal.Signals(os.WTERMSIG(status)).name}")
        if status != 0:
            sys.exit(f"{MADE_BY} failed, and said why")


if __name__ == "__main__":
    main()
