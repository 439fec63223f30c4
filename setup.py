"""Build dserverfs; what it is is declared in setup.cfg."""

from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist


class SourceDistribution(sdist):
    """The package, and what its tests and its developers need beside it."""

    def make_distribution(self) -> None:
        self.filelist.extend(["CHANGELOG.rst", "CONTRIBUTING.rst", "ruff.toml"])
        for directory in (".ci", "scripts", "tests"):
            paths = sorted(Path(directory).rglob("*"))
            self.filelist.extend(
                str(path) for path in paths if path.is_file() and path.parent.name != "__pycache__"
            )
        super().make_distribution()


setup(cmdclass={"sdist": SourceDistribution})
