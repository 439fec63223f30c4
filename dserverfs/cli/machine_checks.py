"""What `dserverfs doctor` looks at on this machine: programs, FUSE, directories, mounts."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dserverfs import __version__
from dserverfs.base import child_processes, disk_space, mountinfo
from dserverfs.base.directories import fstype_of, is_of_network
from dserverfs.base.errors import UsageError
from dserverfs.base.model import SCHEME
from dserverfs.base.mountinfo import Mounted
from dserverfs.cli import mount_helper, mounted
from dserverfs.cli.arguments import moment
from dserverfs.cli.findings import Check, Finding, ok, problem, warning
from dserverfs.cli.progress import size
from dserverfs.mount import control, mountpoint
from dserverfs.remote.tokens import TokenSource, expires_at
from dserverfs.settings import Settings

PROGRAM_TIMEOUT_S = 5.0
_CAP_SYS_ADMIN = 1 << 21  # capabilities(7)
_BROKERS = "dtool.storage_brokers"


def of_programs(timeout_s: float) -> Iterator[Check]:
    """Yield the checks that no setting decides; each ends within `timeout_s`, or says why not."""
    yield Check("dserverfs", _versions)
    yield Check("packages", _packages)
    yield Check("fuse", _fuse)
    yield Check("mount helper", _helper)
    yield Check("dtool", _dtool)
    for mount in mountinfo.dserverfs_mounts():
        if mount.owner == os.geteuid():
            yield Check(f"mount {mount.path}", partial(_mount, mount, timeout_s))


def of_settings(settings: Settings) -> Iterator[Check]:
    """Yield the checks of what the settings name."""
    for mount in mounted.given_mounts():
        yield Check(f"mount {mount.path}", partial(_given_mount, mount))
    yield Check("cache", partial(_cache, settings.cache_directory()))
    yield Check("staging", partial(_directory, settings.staging_directory(), "DSERVER_STAGING_DIR"))
    for server, path in settings.kept_token_files().items():
        yield Check(f"login {server}", partial(_login, server, path))


def _versions() -> Finding:
    machine = platform.uname()
    system = f"{machine.system} {machine.release}, {machine.machine}"
    return ok(f"{__version__} on Python {platform.python_version()} ({sys.executable}), {system}")


def _packages() -> Finding:
    try:
        requirements = importlib.metadata.requires("dserverfs") or []
    except importlib.metadata.PackageNotFoundError:
        return warning("dserverfs is not installed as a package", "dtool does not find it so")
    names = [re.split(r"[^\w.-]", text)[0] for text in requirements if "extra ==" not in text]
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return problem(f"{name} is not installed", "pip install --force-reinstall dserverfs")
    return ok(", ".join(f"{name} {version}" for name, version in versions.items()))


def _fuse() -> Finding:
    try:
        mountpoint.require_packages()
    except UsageError as error:
        return warning("nothing can be mounted here, and all else works", str(error))
    try:
        versions = [
            f"{name} {importlib.import_module(name).__version__}" for name in mountpoint.PACKAGES
        ]
    except ImportError as error:
        return problem(
            f"pyfuse3 cannot be loaded: {error}",
            "install fuse3, or build it anew: pip install --force-reinstall --no-cache pyfuse3",
        )
    mountpoint.require_fuse()
    try:
        os.close(os.open(mountpoint.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return problem(
            f"{mountpoint.DEVICE} cannot be opened: {error.strerror}",
            "start a container with --device /dev/fuse --cap-add SYS_ADMIN",
        )
    return _may_mount() or ok(f"{', '.join(versions)}, {_fusermount()}; {_allow_other()}")


def _may_mount() -> Finding | None:
    """Return why the kernel would refuse a mount of this user; None if it would not."""
    if os.geteuid() == 0:
        status = Path("/proc/self/status").read_text("ascii", "replace")
        found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
        if found is not None and not int(found[1], 16) & _CAP_SYS_ADMIN:
            return problem(
                "root may not mount here, without CAP_SYS_ADMIN",
                "start the container with --cap-add SYS_ADMIN",
            )
        return None
    program = shutil.which("fusermount3")
    status_of = os.stat(program) if program else None
    if status_of is not None and not (status_of.st_mode & stat.S_ISUID and status_of.st_uid == 0):
        return problem(
            f"{program} does not run as root, so that only root can mount",
            f"an administrator has to run: chown root {program}; chmod u+s {program}",
        )
    return None


def _fusermount() -> str:
    done = subprocess.run(
        ["fusermount3", "--version"],
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT_S,
        env=child_processes.environment(LC_ALL="C"),
    )
    return f"libfuse {done.stdout.strip().rpartition(' ')[2]}"


def _allow_other() -> str:
    try:
        mountpoint.require_allow_other()
    except UsageError:
        return "--allow-other is for root alone (/etc/fuse.conf)"
    return "--allow-other can be used"


def _helper() -> Finding:
    python = mount_helper.installed()
    install = "sudo dserverfs mount-helper install"
    if python is None:
        return ok(f"not installed; only mount(8) and fstab need it ({install})")
    if not os.access(python, os.X_OK):
        return problem(f"it runs {python}, which is not there", install)
    return ok(f"it runs {python} -m dserverfs")


def _dtool() -> Finding:
    owners: list[str] = []  # dtoolcore takes the last
    ours = ""
    for entry in importlib.metadata.entry_points(group=_BROKERS):
        package = "" if entry.dist is None else entry.dist.name
        try:
            broker = entry.load()
        except Exception as error:  # noqa: BLE001  # whatever a package of others raises
            return problem(
                f"the broker {entry.value} cannot be loaded, which ends every command of dtool:"
                f" {error}",
                f"pip uninstall {package}",
            )
        if getattr(broker, "key", None) == SCHEME:
            owners.append(package)
            ours = package if broker.__module__.startswith("dserverfs.") else ours
    if not ours:
        return warning(
            f"dtool does not know {SCHEME}:// by dserverfs",
            "pip install dserverfs into the Python of dtool",
        )
    if owners[-1] != ours:
        return warning(
            f"{SCHEME}:// of dtool is served by {owners[-1]}", f"pip uninstall {owners[-1]}"
        )
    return _dtool_command()


def _dtool_command() -> Finding:
    said = f"{SCHEME}:// is served by dserverfs"
    here = os.path.dirname(sys.executable)
    program = shutil.which("dtool") or shutil.which("dtool", path=here)
    if program is None:
        return ok(f"{said}; the command dtool comes with pip install 'dserverfs[dtool]'")
    with open(program, "rb") as file:
        first = os.fsdecode(file.readline(4096)).strip()
    python = first.removeprefix("#!").partition(" ")[0]
    if os.path.realpath(os.path.dirname(python)) != os.path.realpath(here):
        return warning(
            f"{program} runs {python or 'no Python'}, and dserverfs is installed for another",
            f"{python} -m pip install dserverfs",
        )
    return ok(f"{said}, for {program}")


def _mount(mount: Mounted, timeout_s: float) -> Finding:
    if mountpoint.is_dead(Path(mount.path), timeout_s):
        return problem(mounted.has_died(mount.path))
    return ok(f"{mount.source} answers")


def _given_mount(mount: mounted.Mount) -> Finding:
    mounted.last(control.ask(mount.address, {"command": "mount"}))
    return ok(f"{mount.uri} answers; the program that mounted it unmounts it")


def _cache(directory: Path) -> Finding:
    fstype = fstype_of(directory)
    if is_of_network(fstype):
        return warning(
            f"{directory}: is on a network file system ({fstype}), where no cache can be",
            "DSERVER_CACHE_DIR names a directory on a local disk",
        )
    return _directory(directory, "DSERVER_CACHE_DIR")


def _directory(directory: Path, setting: str) -> Finding:
    """Return whether a directory takes files; its place, if it is not there yet."""
    place = next(path for path in (directory, *directory.parents) if path.exists())
    elsewhere = f"{setting} names another directory"
    if place == directory and place.stat().st_uid != os.geteuid():
        return problem(f"{directory}: belongs to another user", elsewhere)
    try:
        if place == directory:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"room?")
        elif not os.access(place, os.W_OK | os.X_OK):
            return problem(f"{directory}: cannot be made in {place}", elsewhere)
    except OSError as error:
        return problem(f"{directory}: takes no files: {error.strerror}", elsewhere)
    free = size(disk_space.free_in_bytes(place))
    if disk_space.lacking_in_bytes(place) > 0:
        return warning(f"{directory}: only {free} are free", f"make room, or {elsewhere}")
    return ok(f"{directory}: {free} free")


def _login(server: str, path: Path) -> Finding:
    if path.stat().st_mode & 0o077:
        return warning("others can read the token", f"chmod 600 {path}")
    end_s = expires_at(TokenSource(None, path).token())
    if end_s is not None and end_s < time.time():
        return warning(f"the token has ended {moment(end_s)}", f"dserverfs login {server}")
    return ok(f"the token ends {moment(end_s)}")
