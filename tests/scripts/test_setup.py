"""The set-up scripts: what they install is pinned, and a run that was cut short is mended."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.accounts import Account
from tests.support.child_processes import spawn

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("server", "demo", "test")

# A project with nothing to fetch but the tools that build it.
SETUP_CFG = """
[metadata]
name = tiny
version = 1
[options]
packages = tiny
[options.extras_require]
one = packaging
two =
"""


def pins() -> Iterator[Requirement]:
    for line in (ROOT / "scripts" / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def wanted_distributions() -> dict[str, str]:
    """Return name and version of everything that dserverfs and its extras install."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    pending = [Requirement(f"dserverfs[{','.join(EXTRAS)}]")]
    while pending:
        requirement = pending.pop()
        distribution = importlib.metadata.distribution(requirement.name)
        found[normalised(requirement.name)] = distribution.version
        for text in distribution.requires or []:
            child = Requirement(text)
            extras = requirement.extras or {""}
            if child.marker and not any(child.marker.evaluate({"extra": e}) for e in extras):
                continue
            child.marker = None
            if str(child) not in seen:  # of one package, several extras may be wanted
                seen.add(str(child))
                pending.append(child)
    del found["dserverfs"]
    return found


def normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_every_package_is_installed_in_the_pinned_version() -> None:
    pinned = {
        normalised(pin.name): str(pin.specifier)
        for pin in pins()
        if pin.marker is None or pin.marker.evaluate()
    }

    different = {
        name: f"{version} is installed, the pin is {pinned.get(name)}"
        for name, version in wanted_distributions().items()
        if pinned.get(name) != f"=={version}"
    }

    assert not different


def test_every_pin_names_one_version() -> None:
    assert all(str(pin.specifier).startswith("==") and len(pin.specifier) == 1 for pin in pins())


@pytest.fixture
def checkout(test_root: Path) -> Iterator[Path]:
    """A checkout of a project with the same set-up script and next to nothing to install."""
    checkout = test_root / "a checkout"
    (checkout / "tiny").mkdir(parents=True)
    (checkout / "tiny" / "__init__.py").touch()
    (checkout / "setup.cfg").write_text(SETUP_CFG)
    (checkout / "setup.py").write_text("from setuptools import setup; setup()")
    (checkout / "scripts").mkdir()
    for name in ("setup-env", "requirements.txt"):
        shutil.copy(ROOT / "scripts" / name, checkout / "scripts" / name)
    yield checkout
    shutil.rmtree(checkout)


def set_up(checkout: Path, extras: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / "setup-env", extras],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_interrupted_set_up_is_begun_anew_and_the_next_is_quick(checkout: Path) -> None:
    complete = checkout / ".venv" / "complete"
    with spawn([checkout / "scripts" / "setup-env", "one"]) as first:
        wait_for(checkout / ".venv" / "pyvenv.cfg")
        assert not complete.exists()
        os.kill(first.pid, signal.SIGKILL)
    rest = checkout / ".venv" / "half"
    rest.touch()

    again = set_up(checkout, "one")
    quick = set_up(checkout, "one")

    assert again.returncode == 0, again.stderr
    assert not rest.exists()
    assert (quick.returncode, quick.stdout, quick.stderr) == (0, "", "")  # it builds nothing
    imported = subprocess.run([checkout / ".venv" / "bin" / "python", "-c", "import tiny"])
    assert imported.returncode == 0


def test_two_set_ups_at_once_wait_for_each_other_and_extras_add_up(checkout: Path) -> None:
    with spawn([checkout / "scripts" / "setup-env", "one"]) as first:
        wait_for(checkout / ".venv" / "pyvenv.cfg")
        second = set_up(checkout, "two")
        assert first.wait() == 0

    assert second.returncode == 0, second.stderr
    assert "waiting for another set-up" in second.stderr
    assert "bringing .venv up to date" in second.stderr
    assert (checkout / ".venv" / "complete").read_text().splitlines()[-1] == "one,two"
    assert set_up(checkout, "one,two").stderr == ""


def wait_for(path: Path, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.fixture
def bare_bin(test_root: Path) -> Iterator[Path]:
    """A PATH on which no package is installed, and neither apt-get nor sudo exists."""
    bare_bin = test_root / "bare-bin"
    bare_bin.mkdir()
    for tool in ("bash", "cat", "dirname", "env", "id", "mktemp", "readlink", "rm", "tail"):
        (bare_bin / tool).symlink_to(shutil.which(tool) or tool)
    query = bare_bin / "dpkg-query"
    query.write_text("#!/bin/bash\nexit 1\n")
    query.chmod(0o755)
    yield bare_bin
    shutil.rmtree(bare_bin)


def test_without_apt_it_says_what_to_install(
    checkout: Path, bare_bin: Path, ordinary_user: Account
) -> None:
    result = ordinary_user.run(
        checkout / "scripts" / "setup-env", "one", env={"PATH": str(bare_bin)}
    )

    assert result.returncode == 1
    assert result.stderr.startswith("setup: missing and there is no apt-get to install it: fuse3 ")
    assert result.stderr.count("\n") == 1


def test_without_sudo_it_says_what_to_run_as_root(
    checkout: Path, bare_bin: Path, ordinary_user: Account
) -> None:
    (bare_bin / "apt-get").symlink_to("/usr/bin/apt-get")

    result = ordinary_user.run(
        checkout / "scripts" / "setup-env", "one", env={"PATH": str(bare_bin)}
    )

    assert result.returncode == 1
    assert "no sudo to install it; as root: apt-get install fuse3 " in result.stderr
    assert result.stderr.count("\n") == 1
