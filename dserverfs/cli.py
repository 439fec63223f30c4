"""The command line: arguments in, one line and an exit status out.

Arguments are defined here; what does the work is imported when it is asked for,
so that a command needs no more than its own dependencies.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dserverfs import __version__
from dserverfs.errors import DserverfsError, UsageError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT
MAX_LOG_BYTES = 10 * 1024 * 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)
# Options of mount(8) that are the kernel's business and harmless here.
_KERNEL_OPTIONS = frozenset(
    {"ro", "nosuid", "nodev", "noexec", "exec", "noatime", "relatime", "async"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 (failed, said why) or 2 (wrong arguments)."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
        return status
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dserverfs", description="Use the datasets of a dserver as files."
    )
    parser.add_argument("--version", action="version", version=f"dserverfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_serve(commands.add_parser("serve", help="run a dserver with its own S3 store here"))
    _add_demo(commands.add_parser("demo", help="serve and mount two real datasets"))
    _add_mount(commands.add_parser("mount", help="show datasets as a directory tree"))
    _add_umount(commands.add_parser("umount", help="end a mount"))
    _add_whoami(commands.add_parser("whoami", help="user, and what that user may read and write"))
    return parser


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Run a dserver with its own S3 store on this machine, until SIGINT or SIGTERM."
        " Prints its URL, its base URI and the path of a token file when it is ready."
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="where everything is kept (default: $XDG_DATA_HOME/dserverfs/server)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    command.add_argument(
        "--port", type=int, default=5000, help="0 takes any free one (default: %(default)s)"
    )
    command.add_argument(
        "--bucket",
        metavar="NAME",
        default="datasets",
        help="bucket of the base URI s3://NAME (default: %(default)s)",
    )
    command.set_defaults(command=_serve)


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.description = "Serve and mount two real datasets on this machine, until Ctrl-C."
    command.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        type=Path,
        nargs="?",
        help="default: a new temporary directory",
    )
    command.add_argument("--once", action="store_true", help="show the datasets and end")
    command.set_defaults(command=_demo)


def _add_logging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="default: standard error")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="default: info",
    )


def _add_mount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="dserver://HOST[:PORT][/BACKEND/BUCKET[/UUID]]")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="an empty directory")
    parser.add_argument("-f", "--foreground", action="store_true", help="do not become a daemon")
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT,...",
        help="allow_other, umask=OCTAL, uid=N, gid=N, and the kernel's ro, noexec, nosuid, ...",
    )
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: ~/.cache/dserverfs")
    parser.add_argument(
        "--cache-size",
        type=_size,
        metavar="SIZE",
        help="such as 20G; default: half of the free space, at most 50G",
    )
    parser.add_argument("--read-only", action="store_true", help="refuse to write")
    parser.add_argument(
        "--verify",
        default="complete",
        choices=["off", "complete"],
        help="compare files read whole with the manifest (complete, the default), or none (off)",
    )
    parser.add_argument("--allow-other", action="store_true", help="let other users read")
    _add_logging(parser)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(command=_mount)


def _add_umount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="default: 60"
    )
    parser.set_defaults(command=_umount)


def _add_whoami(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show which user the token is for, and each base URI with r (may read) and w (may write)."
    )
    parser.add_argument("server", metavar="SERVER", help="HOST[:PORT] or dserver://HOST[:PORT]")
    parser.set_defaults(command=_whoami)


def _serve(arguments: argparse.Namespace) -> int:
    try:
        from dserverfs.server.serve import ServeOptions, serve

        return serve(
            ServeOptions.from_arguments(
                data=arguments.data,
                host=arguments.host,
                port=arguments.port,
                bucket=arguments.bucket,
            )
        )
    except ModuleNotFoundError as error:
        raise _missing("server", error) from error


def _missing(extra: str, error: ModuleNotFoundError) -> Exception:
    """Return what to raise when a module of an optional extra is not installed."""
    if error.name is None or error.name.partition(".")[0] == "dserverfs":
        return error  # a fault of ours, not of the installation
    return UsageError(f"{error.name} is not installed; run: pip install 'dserverfs[{extra}]'")


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from dserverfs import demo
        from dserverfs.settings import Settings
    except ModuleNotFoundError as error:
        raise _missing("demo", error) from error

    demo.run(arguments.mountpoint, Settings.load().data_directory() / "demo", once=arguments.once)
    return 0


def _mount(arguments: argparse.Namespace) -> int:
    from dserverfs import launcher, mountpoint
    from dserverfs.model import DserverURI
    from dserverfs.settings import Settings

    uri = DserverURI.parse(arguments.uri)
    path = mountpoint.resolve(arguments.mountpoint)
    fuse = _fuse_arguments(arguments.options, arguments.allow_other)
    settings = Settings.load()
    if not arguments.foreground and arguments.ready_fd is None:
        log_file = arguments.log_file or settings.state_directory() / _log_name(path)
        launcher.start(
            [*_daemon_arguments(arguments, path), "--log-file", str(log_file.absolute())]
        )
        return 0
    from dserverfs import mount

    _log_to(arguments.log_file, arguments.log_level)
    verify = arguments.verify == "complete"
    options = mount.MountOptions(
        uri, path, arguments.cache_dir, arguments.cache_size, *fuse, verify=verify
    )
    status = 0
    try:
        mount.run(options, settings, arguments.ready_fd)
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


def _daemon_arguments(arguments: argparse.Namespace, path: Path) -> list[str]:
    """Return the arguments of the daemon, with every path absolute."""
    again = ["mount", arguments.uri, str(path), "--log-level", arguments.log_level]
    again += ["--verify", arguments.verify]
    for option in arguments.options:
        again += ["-o", option]
    if arguments.cache_dir is not None:
        again += ["--cache-dir", str(arguments.cache_dir.absolute())]
    if arguments.cache_size is not None:
        again += ["--cache-size", str(arguments.cache_size)]
    if arguments.read_only:
        again.append("--read-only")
    if arguments.allow_other:
        again.append("--allow-other")
    return again


def _fuse_arguments(
    options: Sequence[str], allow_other: bool
) -> tuple[int, int, int, bool, tuple[str, ...]]:
    """Return (umask, uid, gid, allow_other, options for the kernel) of all -o."""
    numbers = {"umask": 0, "uid": os.getuid(), "gid": os.getgid()}
    kernel = []
    for option in (part for group in options for part in group.split(",") if part):
        name, _, value = option.partition("=")
        if option == "allow_other":
            allow_other = True
        elif name in numbers:
            try:
                numbers[name] = int(value, 8 if name == "umask" else 10)
            except ValueError:
                raise UsageError(f"-o {option}: {value!r} is not a number") from None
        elif option in _KERNEL_OPTIONS:
            kernel.append(option)
        else:
            raise UsageError(f"-o {option}: unknown option")
    return numbers["umask"], numbers["uid"], numbers["gid"], allow_other, tuple(kernel)


def _log_name(path: Path) -> str:
    return f"mount{str(path).replace('/', '-')[-200:]}.log"


def _log_to(path: Path | None, level: str) -> None:
    """Send the log of this process to a file, or to standard error."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler()
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8"
            )
        except OSError as error:
            raise UsageError(f"--log-file {path}: cannot be written: {error.strerror}") from error
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # urllib3 logs whole URLs at DEBUG; a signed URL's query is a secret.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _size(text: str) -> int:
    match = _SIZE.match(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 20G")
    number, unit = match.groups()
    return int(float(number) * 1024 ** " KMGT".index(unit.upper() or " "))


def _umount(arguments: argparse.Namespace) -> int:
    from dserverfs import launcher, mountpoint

    launcher.stop(mountpoint.resolve(arguments.mountpoint), arguments.timeout)
    return 0


def _whoami(arguments: argparse.Namespace) -> int:
    from dserverfs.client import whoami
    from dserverfs.model import SCHEME, DserverURI
    from dserverfs.settings import Settings

    text: str = arguments.server
    server = DserverURI.parse(text if "://" in text else f"{SCHEME}://{text}").server
    user = whoami(server, Settings.load())
    print(f"user: {user.username}")
    print(f"admin: {'yes' if user.is_admin else 'no'}")
    for base_uri in sorted({*user.search_base_uris, *user.register_base_uris}):
        may_read = "r" if base_uri in user.search_base_uris else "-"
        may_write = "w" if base_uri in user.register_base_uris else "-"
        print(f"{may_read}{may_write} {DserverURI(server, base_uri)}")
    return 0
