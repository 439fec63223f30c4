"""Users to run dserverfs as: the one the tests run as, and, as root, an ordinary one."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dserverfs
from tests.support.child_processes import SETPRIV, spawn
from tests.support.leftovers import ROOT_VARIABLE, USER_PREFIX
from tests.support.patience import LATE_S

_PACKAGE = Path(dserverfs.__file__).resolve().parent
# `on`, `off`: whether mounts that the tests make have a channel, but for those that say themselves.
_CHANNEL_VARIABLE = "DSERVERFS_TEST_CHANNEL"


@dataclass(frozen=True)
class Account:
    """A user with an empty home, and a Python with dserverfs that this user can run."""

    name: str
    home: Path
    python: Path
    environment: Mapping[str, str]
    _become: tuple[str, ...] = ()  # what goes before a command that root runs as this user

    def command(self, *arguments: str | Path) -> list[str | Path]:
        return [*self._become, *arguments]

    def dserverfs_command(self, *arguments: str | Path) -> list[str | Path]:
        return self.command(self.python, "-m", "dserverfs", *with_channel(arguments))

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # as subprocess.run calls it
        timeout_s: float = LATE_S,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this user's home and return it with its output."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **(env or {})},
            cwd=self.home,
            input=input or "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=check,
        )

    def dserverfs(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        timeout_s: float = LATE_S,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `dserverfs ARGUMENTS...` as this user."""
        command = (self.python, "-m", "dserverfs", *with_channel(arguments))
        return self.run(*command, env=env, timeout_s=timeout_s, check=check)

    def spawn(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """Run a command as this user beside the test, with pipes for its output."""
        return spawn(
            self.command(*arguments),
            env={**self.environment, **(env or {})},
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def with_channel(arguments: Sequence[str | Path]) -> Sequence[str | Path]:
    """Return the arguments of a command, of a mount with a channel if the run is to have them."""
    channel = os.environ.get(_CHANNEL_VARIABLE)
    if channel is None or arguments[:1] != ("mount",) or "--channel" in arguments:
        return arguments
    return ("mount", "--channel", channel, *arguments[1:])


def current(root: Path) -> Account:
    """Return the user that runs the tests, with a fresh home below `root`."""
    home = root / "home-current"
    home.mkdir()
    name = pwd.getpwuid(os.geteuid()).pw_name
    environment = _environment(root, name, home)
    if os.geteuid() != 0:  # who then cannot see by their environments which daemons are left
        environment["DSERVER_CORE_DUMPS"] = "true"
    return Account(name, home, Path(sys.executable), environment)


def logged_in(root: Path) -> str:
    """Return, and delete, which tokens of a login a test left in a home below `root`; "" if none.

    All tests of a run have these homes, and are told there who they are.
    """
    left = list(root.glob("home-*/.config/dserverfs/tokens/*"))
    for path in left:
        path.unlink()
    return f"leaves a login in a home that others have: {', '.join(map(str, left))}" if left else ""


@contextlib.contextmanager
def ordinary(root: Path) -> Iterator[Account]:
    """Yield a throw-away user for as long as the block lasts; needs root.

    A run that is killed leaves the user behind; `tests.support.leftovers` removes it then.
    """
    name = f"{USER_PREFIX}{os.getpid()}"
    home = root / f"home-{name}"
    _root_command("useradd", "--system", "--no-create-home", "--home-dir", home, name)
    try:
        user = pwd.getpwnam(name)
        home.mkdir()
        os.chown(home, user.pw_uid, user.pw_gid)
        environment = _environment(root, name, home)
        python = Path(sys.executable)
        if not (is_reachable_by_all(python) and is_reachable_by_all(_PACKAGE / "__init__.py")):
            python = Path(os.path.realpath(sys.executable))
            if not is_reachable_by_all(python):
                raise PermissionError(f"{python} cannot be run by other users; use the system's")
            environment["PYTHONPATH"] = str(copy_client(root / "client"))
        become = (
            *(SETPRIV, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"),
            # After setpriv changed the user: a change of user takes the death signal away.
            *("--clear-groups", "--pdeathsig=KILL", "--"),
        )
        yield Account(name, home, python, environment, become)
    finally:
        # --force: a daemon that is about to end does not keep the user from going.
        subprocess.run(["userdel", "--force", name], check=True, stderr=subprocess.DEVNULL)


def is_reachable_by_all(path: Path) -> bool:
    """Return whether every user can read `path` and pass every directory on the way to it."""
    resolved = path.resolve()
    on_the_way = {*path.absolute().parents, *resolved.parents}
    return bool(resolved.stat().st_mode & stat.S_IROTH) and all(
        directory.stat().st_mode & stat.S_IXOTH for directory in on_the_way
    )


def copy_client(target: Path) -> Path:
    """Copy dserverfs and what a client of it imports to `target`, readable by everybody."""
    target.mkdir(mode=0o755)
    shutil.copytree(_PACKAGE, target / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for distribution in _requirements_of(importlib.metadata.distribution("dserverfs")):
        for file in distribution.files or []:
            if ".." in file.parts or file.suffix == ".pyc":  # scripts, which nobody needs there
                continue
            destination = target / file
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(distribution.locate_file(file)), destination)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def _requirements_of(
    distribution: importlib.metadata.Distribution,
) -> list[importlib.metadata.Distribution]:
    """Return what `distribution` requires to mount, and what that requires."""
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = [distribution]
    while pending:
        for requirement in pending.pop().requires or []:
            name, _, condition = requirement.partition(";")
            name = re.split(r"[^\w.-]", name.strip())[0].lower()
            if name in found or ("extra ==" in condition and '"mount"' not in condition):
                continue
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # its condition does not hold on this Python
            pending.append(found[name])
    return list(found.values())


def _environment(root: Path, name: str, home: Path) -> dict[str, str]:
    """Return a minimal environment: none of the settings of whoever runs the tests."""
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LOGNAME": name,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(_PACKAGE.parent),  # this checkout, whichever is installed
        "USER": name,
        ROOT_VARIABLE: str(root),
    }


def _root_command(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"{command[0]} failed: {result.stderr.strip()}")
