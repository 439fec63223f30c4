"""What is distributed: sources with their tests, and a wheel with all that it installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dserverfs import __version__
from dserverfs.cli import made_files

ROOT = Path(__file__).resolve().parents[2]
DIRECTORIES = ("dserverfs", "tests", "scripts", ".ci")
FILES = (
    *("setup.cfg", "setup.py", "ruff.toml", "README.rst", "LICENSE"),
    *("CHANGELOG.rst", "CONTRIBUTING.rst"),
)
# As pip does for a project without pyproject.toml, and without a network.
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta.__legacy__, sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, sources: Path) -> Path:
    """Return the distribution that is built of these sources, beside them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, f"build_{kind}", ".."],
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sources.parent / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked as one who downloads it does."""
    copy = tmp_path_factory.mktemp("built") / "copy"
    for name in DIRECTORIES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    with tarfile.open(build("sdist", copy)) as archive:
        if hasattr(tarfile, "data_filter"):  # without it, Python 3.12 and 3.13 warn
            archive.extraction_filter = staticmethod(tarfile.data_filter)
        archive.extractall(copy.parent)
    return copy.parent / f"dserverfs-{__version__}"


def test_source_distribution_has_every_file_of_the_checkout(unpacked: Path) -> None:
    wanted = [ROOT / name for name in FILES]
    for name in DIRECTORIES:
        found = [path for path in (ROOT / name).rglob("*") if path.is_file()]
        wanted += [path for path in found if path.parent.name != "__pycache__"]

    relative = [path.relative_to(ROOT) for path in wanted]
    assert [path for path in relative if not (unpacked / path).is_file()] == []


def test_wheel_of_a_source_distribution_has_all_that_it_installs(unpacked: Path) -> None:
    with zipfile.ZipFile(build("wheel", unpacked)) as wheel:
        names = set(wheel.namelist())
        page = wheel.read(f"dserverfs-{__version__}.data/data/share/man/man1/dserverfs.1")

    package = ROOT / "dserverfs"
    modules = {path for path in package.rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in modules if path.suffix != ".pyc"}
    assert {
        "dserverfs/py.typed",
        "dserverfs/units/user.service",
        "dserverfs/docs/server.rst",
    } <= wanted
    made = {f"dserverfs-{__version__}.data/data/{path}" for path in made_files.MADE}
    assert wanted | made <= names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    assert page.decode() == made_files.man_page()
