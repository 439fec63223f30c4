"""Build dserverfs, which setup.cfg declares, with the files that are made of its parser."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).absolute().parent


class BuildPython(build_py):
    """The modules; and man page and completions, as files that are installed beside Python."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(ROOT))
        from dserverfs.cli import made_files

        directory = Path(self.get_finalized_command("build").build_base)
        self.distribution.data_files = [
            (str(path.parent), [str(directory / path)]) for path in made_files.write(directory)
        ]


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


setup(cmdclass={"build_py": BuildPython, "sdist": SourceDistribution})
