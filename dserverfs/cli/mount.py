"""`dserverfs mount`: shows datasets as a directory tree."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dserverfs.base import other_user
from dserverfs.base.errors import DserverfsError
from dserverfs.cli import log_file, mount_options
from dserverfs.cli.arguments import LEVELS, Commands, example, say, size

if TYPE_CHECKING:
    from dserverfs.base.model import DserverURI
    from dserverfs.mount.channel.succession import Heritage
    from dserverfs.settings import Settings

_CHANNEL = "auto"  # the default of --channel


def add(commands: Commands) -> None:
    define(commands.add_parser("mount", help="show datasets as a directory tree"))


def define(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of `mount`."""
    parser.description = (
        "Show the datasets of a server, those of a base URI, or a single one, as a directory tree."
        " Returns when the mount answers; a daemon then serves it until dserverfs umount"
        " MOUNTPOINT. Datasets are made and frozen in it, and frozen ones are read and annotated."
        " /dev/fd/N as MOUNTPOINT is a FUSE device that another program has opened and mounted,"
        " such as a container runtime: it is served without any privilege, and not unmounted."
    )
    parser.add_argument("uri", metavar="URI", help="dserver://HOST[:PORT][/BACKEND/BUCKET[/UUID]]")
    parser.add_argument(
        "mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty directory, or /dev/fd/N"
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="do not become a daemon")
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT,...",
        help="allow_other, xattr, umask=OCTAL, uid=N, gid=N, setuid=USER, those of mount(8), and"
        " what fstab has no other place for: token_file=FILE, protocol=https, cache_size=SIZE, ...",
    )
    _add_places(parser)
    parser.add_argument("--read-only", action="store_true", help="refuse to write")
    parser.add_argument(
        "--freeze-delay",
        type=mount_options.delay,
        default=30.0,
        metavar="SECONDS",
        help="freeze a dataset that is closed and unchanged for so long (default: 30);"
        " `manual`: only by dserverfs freeze",
    )
    parser.add_argument(
        "--verify",
        default="complete",
        choices=mount_options.POLICIES,
        help="when content is compared with the manifest: never (off), before the last byte of a"
        " file that is read whole (complete, the default), or before the first byte of files up"
        " to 256 MiB (strict)",
    )
    _add_serving(parser)
    _add_logging(parser)
    parser.epilog = example("dserverfs mount dserver://data.example.org/s3/lab ~/lab")
    parser.set_defaults(command=_run)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Add where bytes are kept, and how many."""
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


def _add_serving(parser: argparse.ArgumentParser) -> None:
    """Add who may see it, and how it is served."""
    parser.add_argument("--allow-other", action="store_true", help="let other users read")
    parser.add_argument(
        "--metrics",
        type=mount_options.metrics_address,
        metavar="[HOST:]PORT",
        help="show figures of the mount to Prometheus at http://HOST:PORT/metrics, at 127.0.0.1"
        " without HOST; they are in MOUNTPOINT/.dserverfs/stats, too",
    )
    parser.add_argument(
        "--channel",
        default=_CHANNEL,
        choices=("auto", "on", "off"),
        help="whether a process of its own answers what is cached, and names in frozen datasets,"
        " and starts another daemon if this one dies, unless it is in the foreground;"
        f" auto: if it can be started (default: {_CHANNEL})",
    )


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="default: below ~/.local/state/dserverfs; with -f, standard error",
    )
    parser.add_argument(
        "--log-level",
        type=str.lower,
        default="info",
        choices=LEVELS,
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
    from dserverfs.mount import given_device, launcher, mountpoint
    from dserverfs.settings import Settings

    uri = DserverURI.parse(arguments.uri)
    options = mount_options.parse(arguments.options)
    if options.user is not None:  # before anything of root's is read
        other_user.become(options.user)
    for name, value in options.arguments.items():
        setattr(arguments, name, value)
    given = given_device.number_of(arguments.mountpoint)
    if given is None:
        path = mountpoint.resolve(arguments.mountpoint)
    else:
        path = arguments.mountpoint
        given_device.take(given)
        _say_passed_over(path, options.kernel)
    settings = Settings.load().overridden(uri.server, options.settings)
    mountpoint.refuse_own_files(path, _own_files(arguments, settings, uri.server))
    if arguments.foreground:
        return _serve(arguments, uri, path, options, settings, None, None)
    if arguments.log_file is None:
        # Every program that mounts has the device at 3, or nearly.
        place = path if given is None else Path(f"{path}-{uri}")
        arguments.log_file = settings.state_directory() / log_file.name_of(place)
    if given is None:
        mountpoint.require_fuse()
    before = mountinfo.find_mounted(path)
    try:
        launcher.start(
            lambda ready_fd: _serve(arguments, uri, path, options, settings, ready_fd, None),
            [] if given is None else [given],
        )
    except BaseException:
        # A daemon that was ended just after it had mounted; not one that died earlier, whose
        # dead mount point keeps a mirror from taking an empty directory for the data.
        if mountinfo.find_mounted(path) not in (before, None) and mountpoint.is_dead(path):
            mountpoint.detach(path)
        raise
    say(f"{uri} is mounted at {path}; its log is {arguments.log_file.absolute()}")
    _tell_end_of_token(settings, uri.server)
    return 0


def _say_passed_over(path: Path, options: Sequence[str]) -> None:
    """Say that options for the kernel do nothing in a mount that another program made."""
    if options:
        say(
            f"dserverfs: -o {','.join(options)}: passed over; the program that mounted {path}"
            " decides that",
            file=sys.stderr,
        )


def _tell_end_of_token(settings: Settings, server: str) -> None:
    """Say it here if the token is about to end: the daemon says so in its log alone."""
    from dserverfs.base.errors import NotAuthenticated
    from dserverfs.remote.tokens import LastDay, TokenSource

    setting = settings.token(server)
    if setting is not None and setting.command is None:
        with contextlib.suppress(NotAuthenticated):
            TokenSource(setting.token, setting.file, tell_end=LastDay()).token()


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


def serve_on(arguments: argparse.Namespace, heritage: Heritage) -> int:
    """Serve the mount of a daemon that is dead; return the exit status. Raises DserverfsError."""
    from dserverfs.base.model import DserverURI
    from dserverfs.settings import Settings

    uri = DserverURI.parse(arguments.uri)
    options = mount_options.parse(arguments.options)
    for name, value in options.arguments.items():
        setattr(arguments, name, value)
    settings = Settings.load().overridden(uri.server, options.settings)
    return _serve(arguments, uri, arguments.mountpoint, options, settings, None, heritage)


def _serve(
    arguments: argparse.Namespace,
    uri: DserverURI,
    path: Path,
    wanted: mount_options.Options,
    settings: Settings,
    ready_fd: int | None,
    heritage: Heritage | None,
) -> int:
    """Mount and serve until told to end; return the exit status.

    `heritage` is of a daemon before, whose mount is served on.
    """
    from dserverfs.base import core_dumps
    from dserverfs.base.hashes import Policy
    from dserverfs.cli import successor_command
    from dserverfs.mount import daemon, given_device, launcher

    if not settings.allows_core_dumps():
        core_dumps.forbid()
    log_file.log_to(_absolute(arguments.log_file), arguments.log_level)
    options = launcher.MountOptions(
        uri,
        path,
        _absolute(arguments.cache_dir),
        arguments.cache_size,
        wanted.umask,
        os.getuid() if wanted.uid is None else wanted.uid,
        os.getgid() if wanted.gid is None else wanted.gid,
        arguments.allow_other or wanted.allow_other,
        wanted.kernel,
        verify=Policy(arguments.verify),
        staging_directory=_absolute(arguments.staging_dir),
        read_only=arguments.read_only or wanted.is_read_only,
        freeze_delay_s=arguments.freeze_delay,
        xattr=wanted.xattr,
        metrics_at=arguments.metrics,
        given=given_device.number_of(path),
        channel=arguments.channel,
        successor=() if arguments.foreground else successor_command.words(arguments, path),
        log=None if arguments.log_file is None else str(_absolute(arguments.log_file)),
    )
    status = 0
    try:
        daemon.run(options, settings, ready_fd, heritage)
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
