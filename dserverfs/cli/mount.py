"""`dserverfs mount`: shows datasets as a directory tree."""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.printable import PrintableFormatter
from dserverfs.cli.arguments import Commands, size

if TYPE_CHECKING:
    from io import TextIOWrapper

    from dserverfs.base.model import DserverURI
    from dserverfs.settings import Settings

MAX_LOG_BYTES = 10 * 1024 * 1024
MAX_LOG_NAME_BYTES = 200  # beside what is added to it, of the 255 of a file's name
_OUR_OPTIONS = frozenset({"allow_other", "xattr"})
# Options of mount(8) that are the kernel's business; those that fusermount3 takes.
_KERNEL_OPTIONS = frozenset(
    {
        "ro",
        "rw",
        "nosuid",
        "nodev",
        "noexec",
        "exec",
        "atime",
        "noatime",
        "async",
        "sync",
        "dirsync",
    }
)
# What fstab(5) and systemd.mount(5) have for others than a file system, and what says no more
# than what is so anyway: a dataset holds neither devices nor programs of another user.
_OPTIONS_OF_OTHERS = frozenset(
    {"defaults", "auto", "noauto", "nofail", "fail", "_netdev", "user", "nouser", "users"}
    | {"owner", "group", "suid", "dev", "relatime", "norelatime", "strictatime", "nostrictatime"}
    | {"diratime", "nodiratime", "lazytime", "nolazytime", "iversion", "noiversion", "mand"}
    | {"nomand", "silent", "loud", "default_permissions"}
)
_PREFIXES_OF_OTHERS = ("x-", "X-", "comment=")


def add(commands: Commands) -> None:
    parser = commands.add_parser("mount", help="show datasets as a directory tree")
    parser.add_argument("uri", metavar="URI", help="dserver://HOST[:PORT][/BACKEND/BUCKET[/UUID]]")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty directory")
    parser.add_argument("-f", "--foreground", action="store_true", help="do not become a daemon")
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT,...",
        help="allow_other, xattr, umask=OCTAL, uid=N, gid=N, and those of mount(8)",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: ~/.cache/dserverfs")
    parser.add_argument(
        "--cache-size",
        type=size,
        metavar="SIZE",
        help="limit, such as 20G; 0 keeps nothing; default: half of the free space, at most 50G",
    )
    parser.add_argument(
        "--staging-dir",
        type=Path,
        metavar="DIR",
        help="for datasets until they are frozen; default: ~/.local/share/dserverfs/staging",
    )
    parser.add_argument("--read-only", action="store_true", help="refuse to write")
    parser.add_argument(
        "--freeze-delay",
        type=_delay,
        default=30.0,
        metavar="SECONDS",
        help="freeze a dataset that is closed and unchanged for so long (default: 30);"
        " `manual`: only by dserverfs freeze",
    )
    parser.add_argument(
        "--verify",
        default="complete",
        choices=["off", "complete", "strict"],
        help="when content is compared with the manifest: never (off), before the last byte of a"
        " file that is read whole (complete, the default), or before the first byte of files up"
        " to 256 MiB (strict)",
    )
    parser.add_argument("--allow-other", action="store_true", help="let other users read")
    _add_logging(parser)
    parser.set_defaults(command=_run)


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="default: standard error")
    parser.add_argument(
        "--log-level",
        type=str.lower,
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="default: info",
    )


def _run(arguments: argparse.Namespace) -> int:
    # Until the mount answers: imports leave nothing to collect, and looking for it takes a
    # tenth of their time.
    gc.disable()
    try:
        return _mount(arguments)
    finally:
        gc.enable()


def _mount(arguments: argparse.Namespace) -> int:
    from dserverfs.base import mountinfo
    from dserverfs.base.model import DserverURI
    from dserverfs.mount import launcher, mountpoint
    from dserverfs.settings import Settings

    uri = DserverURI.parse(arguments.uri)
    path = mountpoint.resolve(arguments.mountpoint)
    fuse = _fuse_arguments(arguments.options)
    settings = Settings.load()
    mountpoint.refuse_own_files(path, _own_files(arguments, settings, uri.server))
    if arguments.foreground:
        return _serve(arguments, uri, path, fuse, settings, None)
    if arguments.log_file is None:
        arguments.log_file = settings.state_directory() / _log_name(path)
    before = mountinfo.find_mounted(path)
    try:
        launcher.start(lambda ready_fd: _serve(arguments, uri, path, fuse, settings, ready_fd))
    except BaseException:
        # A daemon that was ended just after it had mounted; not one that died earlier, whose
        # dead mount point keeps a mirror from taking an empty directory for the data.
        if mountinfo.find_mounted(path) not in (before, None) and mountpoint.is_dead(path):
            mountpoint.detach(path)
        raise
    return 0


def _own_files(
    arguments: argparse.Namespace, settings: Settings, server: str
) -> dict[str, Path | None]:
    """Return what the daemon reads and writes, by what names it."""
    return {
        "--cache-dir": arguments.cache_dir or settings.cache_directory(),
        "--staging-dir": arguments.staging_dir or settings.staging_directory(),
        "--log-file": arguments.log_file,
        "XDG_STATE_HOME": settings.state_directory(),
        "DSERVER_TOKEN_FILE": settings.token_file(server),
        "DSERVER_CA_FILE": settings.trust(server).ca_file,
    }


def _serve(
    arguments: argparse.Namespace,
    uri: DserverURI,
    path: Path,
    fuse: _Fuse,
    settings: Settings,
    ready_fd: int | None,
) -> int:
    """Mount and serve until told to end; return the exit status."""
    from dserverfs.base import core_dumps
    from dserverfs.base.hashes import Policy
    from dserverfs.mount import daemon, launcher

    if not settings.allows_core_dumps():
        core_dumps.forbid()
    _log_to(_absolute(arguments.log_file), arguments.log_level)
    options = launcher.MountOptions(
        uri,
        path,
        _absolute(arguments.cache_dir),
        arguments.cache_size,
        fuse.umask,
        fuse.uid,
        fuse.gid,
        arguments.allow_other or "allow_other" in fuse.ours,
        tuple(fuse.kernel),
        verify=Policy(arguments.verify),
        staging_directory=_absolute(arguments.staging_dir),
        read_only=arguments.read_only or fuse.is_read_only,
        freeze_delay_s=arguments.freeze_delay,
        xattr="xattr" in fuse.ours,
    )
    status = 0
    try:
        daemon.run(options, settings, ready_fd)
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        status = 1
    except BaseException:
        logging.getLogger(__name__).exception("the mount ended by a fault of ours")
        status = 1
    logging.shutdown()
    sys.stderr.flush()
    # Without waiting for threads that may be stalled in a read from the network.
    os._exit(status)


def _absolute(path: Path | None) -> Path | None:
    """Return the path as it stays good when the daemon has left the directory."""
    return None if path is None else path.absolute()


class _Fuse(NamedTuple):
    """What all the -o say together."""

    umask: int
    uid: int
    gid: int
    ours: list[str]  # of _OUR_OPTIONS
    kernel: list[str]
    is_read_only: bool


def _fuse_arguments(options: Sequence[str]) -> _Fuse:
    numbers = {"umask": 0, "uid": os.getuid(), "gid": os.getgid()}
    ours, kernel, is_read_only = [], [], False
    for option in (part for group in options for part in group.split(",") if part):
        name, _, value = option.partition("=")
        if option in _OUR_OPTIONS:
            ours.append(option)
        elif name in numbers:
            try:
                numbers[name] = int(value, 8 if name == "umask" else 10)
            except ValueError:
                raise UsageError(f"-o {option}: {value!r} is not a number") from None
        elif option in ("ro", "rw"):
            is_read_only = option == "ro"  # the last one counts, as for mount(8)
        elif option in _KERNEL_OPTIONS:
            kernel.append(option)
        elif option not in _OPTIONS_OF_OTHERS and not option.startswith(_PREFIXES_OF_OTHERS):
            raise UsageError(f"-o {option}: unknown option")
    return _Fuse(numbers["umask"], numbers["uid"], numbers["gid"], ours, kernel, is_read_only)


def _delay(text: str) -> float | None:
    if text == "manual":
        return None
    try:
        delay_s = float(text)
    except ValueError:
        delay_s = -1.0
    if not 0 <= delay_s < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seconds nor manual")
    return delay_s


def _log_name(path: Path) -> str:
    name = os.fsencode(str(path).replace("/", "-"))
    if len(name) > MAX_LOG_NAME_BYTES:  # another mount point may end alike
        name = hashlib.sha256(name).hexdigest()[:16].encode() + name[-MAX_LOG_NAME_BYTES:]
    # A character that was cut, and one that no text can hold, in its readable form.
    return f"mount{os.fsdecode(name).encode('utf-8', 'replace').decode()}.log"


class _PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that nobody else can read, whatever the umask is."""

    def _open(self) -> TextIOWrapper:
        from dserverfs.base.local_files import create_private

        create_private(Path(self.baseFilename))
        return super()._open()


def _log_to(path: Path | None, level: str) -> None:
    """Send the log of this process to a file, or to standard error."""
    from dserverfs.base.local_files import make_private

    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        try:
            make_private(path.parent)
            handler = _PrivateLog(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--log-file {path}: cannot be written: {error.strerror}") from error
    handler.setFormatter(
        PrintableFormatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # urllib3 logs whole URLs at DEBUG; a signed URL's query is a secret.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
