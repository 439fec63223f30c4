"""`dserverfs mount-helper`: lets mount(8), fstab and systemd mount and unmount.

mount(8) runs /sbin/mount.fuse.dserverfs SOURCE DIRECTORY [-sfnv] [-o OPTIONS] for a file
system of that type, and umount(8) /sbin/umount.fuse.dserverfs DIRECTORY [-lfnvr]. These are
scripts of two lines that run the actions `mount` and `umount` of this command. As root runs
them, nobody but root may be able to change what they run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.cli.arguments import Commands, example, say, sentence

DIRECTORY = Path("/sbin")  # where mount(8) looks first
ACTIONS = ("mount", "umount")
EXIT_MOUNT_FAILED = 32  # of mount(8) and umount(8)
# An uploading umount has to end before systemd, which gives it 90 s, takes its daemon away.
UPLOADING_S = 40.0
_MARK = "# Written by `dserverfs mount-helper install`; `dserverfs mount-helper remove` deletes it."


def add(commands: Commands) -> None:
    parser = commands.add_parser("mount-helper", help="let mount(8), fstab and systemd mount")
    parser.description = (
        "With the helper, `mount -t fuse.dserverfs URI DIRECTORY -o OPTIONS`, lines of fstab and"
        " mount units of systemd work; `umount` freezes and sends first, as dserverfs umount does."
    )
    parser.epilog = example("sudo dserverfs mount-helper install")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, said, command in (
        ("install", "write mount.fuse.dserverfs and umount.fuse.dserverfs", _install),
        ("remove", "delete them", _remove),
    ):
        action = actions.add_parser(name, help=said, description=sentence(said))
        action.add_argument(
            "--directory", type=Path, default=DIRECTORY, help=f"default: {DIRECTORY}"
        )
        action.set_defaults(command=command)
    said = "what mount(8) runs"
    mounting = actions.add_parser("mount", help=said, description=sentence(said))
    mounting.add_argument("source", metavar="URI", help="what to mount")
    mounting.add_argument("directory", metavar="DIRECTORY", help="where")
    mounting.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT,...",
        help="as dserverfs mount has them",
    )
    mounting.add_argument(
        "-s", dest="is_sloppy", action="store_true", help="pass over unknown options"
    )
    mounting.add_argument("-f", dest="is_fake", action="store_true", help="do not mount")
    _add_ignored(mounting, "-n", "-v")
    mounting.add_argument("-t", help=argparse.SUPPRESS)
    mounting.set_defaults(command=_mount)
    said = "what umount(8) runs"
    unmounting = actions.add_parser("umount", help=said, description=sentence(said))
    unmounting.add_argument("directory", metavar="DIRECTORY", help="what to unmount")
    unmounting.add_argument("-l", dest="is_lazy", action="store_true", help="at once, when in use")
    unmounting.add_argument("-f", dest="is_forced", action="store_true", help="at once")
    _add_ignored(unmounting, "-n", "-v", "-r")
    unmounting.add_argument("-t", help=argparse.SUPPRESS)
    unmounting.set_defaults(command=_umount)


def _add_ignored(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)


def _install(arguments: argparse.Namespace) -> int:
    import dserverfs

    python, package = Path(sys.executable), Path(dserverfs.__file__).parent
    for path in (python, package):
        require_roots_own(path)
    _require_found(python)
    for action in ACTIONS:
        path = _script(arguments.directory, action)
        _require_ours(path)
        command = f"{shlex.quote(str(python))} -I -m dserverfs mount-helper {action}"
        _write(path, f'#!/bin/sh\n{_MARK}\nexec {command} "$@"\n')
        say(f"{path} runs {python} -m dserverfs")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    for action in ACTIONS:
        path = _script(arguments.directory, action)
        _require_ours(path)
        try:
            path.unlink()
            say(f"{path} is deleted")
        except FileNotFoundError:
            say(f"{path}: is not there")
        except OSError as error:
            raise UsageError(f"{path}: cannot be deleted: {error.strerror}") from error
    return 0


def installed() -> Path | None:
    """Return the Python that mount(8) runs dserverfs with; None if there is no helper of ours."""
    try:
        text = _script(DIRECTORY, "mount").read_text("utf-8", "replace")
    except OSError:
        return None
    command = text.partition("\nexec ")[2]
    return Path(shlex.split(command)[0]) if _MARK in text and command else None


def _script(directory: Path, action: str) -> Path:
    return directory / f"{action}.fuse.dserverfs"


def _require_ours(path: Path) -> None:
    """Raise UsageError if another program's file is there, or none that can be read."""
    try:
        is_ours = _MARK in path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if not is_ours:
        raise UsageError(f"{path}: is there already, and not of dserverfs: look at it, and move it")


def _write(path: Path, text: str) -> None:
    """Replace a script, at once and for all users to run; raises UsageError."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "w") as file:
            os.fchmod(file.fileno(), 0o755)
            file.write(text)
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {error.strerror}; only root can") from error


def require_roots_own(path: Path) -> None:
    """Raise UsageError if others than root can change the file or directory `path`.

    Or put another in its place: all directories and links on the way to it count.
    """
    for each in _on_the_way(path):
        if _is_open(each.lstat()):
            raise UsageError(
                f"{each}: others than root can change it, and root would run it: install dserverfs"
                " as root into a place of root's, such as `python3 -m venv /opt/dserverfs`"
            )


def _is_open(status: os.stat_result) -> bool:
    """Return whether others than root can change what has this status, or what is in it."""
    mode = status.st_mode
    if status.st_uid != 0:
        return True
    if stat.S_ISLNK(mode):  # whose mode counts for nothing
        return False
    # In a directory with the sticky bit, such as /tmp, others cannot replace what is root's.
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        return False
    return bool(mode & 0o002 or (mode & 0o020 and status.st_gid != 0))


def _require_found(python: Path) -> None:
    """Raise UsageError unless this Python finds dserverfs without a user's own modules."""
    from dserverfs.base import child_processes

    done = subprocess.run(
        [str(python), "-I", "-c", "import dserverfs.cli.mount_helper"],
        cwd="/",
        env=child_processes.environment(),
        capture_output=True,
    )
    if done.returncode != 0:
        raise UsageError(
            f"{python} -I does not find dserverfs: install it into this Python's own directory,"
            " not for one user, and without PYTHONPATH"
        )


def _on_the_way(path: Path) -> Iterator[Path]:
    """Yield `path`, what it leads to if it is a link, and each directory and link on the way."""
    seen: set[Path] = set()
    pending = [path.absolute()]
    while pending:
        below = pending.pop()
        for each in (below, *below.parents):
            if each not in seen:
                seen.add(each)
                yield each
                if each.is_symlink():
                    pending.append(each.parent / os.readlink(each))


def _mount(arguments: argparse.Namespace) -> int:
    from dserverfs.cli import mount, mount_options

    parser = argparse.ArgumentParser("mount.fuse.dserverfs")
    mount.define(parser)
    options = arguments.options
    try:
        if arguments.is_sloppy:
            options = mount_options.known_of(options)
        mount_options.parse(options)
        if arguments.is_fake:
            return 0
        words = [word for option in options for word in ("-o", option)]
        wanted = parser.parse_args([*words, "--", arguments.source, arguments.directory])
        status: int = wanted.command(wanted)
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        status = EXIT_MOUNT_FAILED
    return status


def _umount(arguments: argparse.Namespace) -> int:
    from dserverfs.base import mountinfo
    from dserverfs.cli import umount
    from dserverfs.mount import mountpoint

    path = mountpoint.resolve(Path(arguments.directory))
    try:
        if arguments.is_lazy or arguments.is_forced:
            mountpoint.detach(path)
            return 0
        umount.unmount(path, UPLOADING_S)
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        return EXIT_MOUNT_FAILED
    # What is left is staged, and the next mount has it: for umount(8) that is no failure.
    return 0 if mountinfo.find_mounted(path) is None else EXIT_MOUNT_FAILED
