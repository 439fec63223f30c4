"""What a staged dataset's directories are to the kernel and to programs once it is frozen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.staged_datasets import freeze

pytest_plugins = ["tests.support.mount_fixtures"]

# Takes a directory of two links for one without subdirectories, as find once did.
COUNTING = "$File::Find::dont_use_nlink = 0; find({no_chdir => 1, wanted => sub { print qq($_\\n)"
COUNTING += " if -f $_ }}, shift)"


@pytest.fixture
def dataset(base: Path, request: pytest.FixtureRequest) -> Path:
    """A new dataset, named like the test."""
    path: Path = base / request.node.name.replace("[", "-").replace("/]", "").replace("]", "")
    path.mkdir()
    return path


@pytest.mark.parametrize("top", ["", "data/"])
def test_directories_stay_the_same_ones_when_listed_after_the_freeze(
    dataset: Path, current_user: Account, top: str
) -> None:
    for path in ("a/b/one", "a/b/c/two", "a/three", "d/four"):
        file = dataset / top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    (dataset / "README.yml").write_text("---\n")
    before = os.getcwd()
    os.chdir(dataset / top / "a/b")
    try:
        freeze(current_user, dataset)

        for directory, names in {
            **{"..": ("b", "three"), ".": ("c", "one"), "c": ("two",)},
            **{str(dataset): (".dtool", "README.yml", "data"), str(dataset / "data"): ("a", "d")},
        }.items():
            # Before they are listed: else the kernel knows them from the listing.
            known = {name: os.stat(f"{directory}/{name}").st_ino for name in names}
            with os.scandir(directory) as entries:
                assert {entry.name: entry.inode() for entry in entries} == known
        assert os.getcwd() == str(dataset / top / "a/b")
        assert Path("../three").read_text() == "a/three"
    finally:
        os.chdir(before)


def test_programs_that_count_links_pass_over_no_directory(
    dataset: Path, current_user: Account
) -> None:
    files = {"data/a/b/c/one", "data/a/two", "data/three", "README.yml"}
    for name in files:
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_bytes(bytes(4096))

    def found_by(*command: str | Path) -> set[str]:
        lines = current_user.run(*command, check=True).stdout.splitlines()
        return {os.path.relpath(line, dataset) for line in lines}

    for _ in ("staged", "frozen"):
        assert files <= found_by("perl", "-MFile::Find", "-e", COUNTING, dataset)
        assert files <= found_by("find", dataset, "-type", "f")
        used = current_user.run("du", "-s", "--apparent-size", "-B1", dataset / "data", check=True)
        assert int(used.stdout.split()[0]) == 3 * 4096
        freeze(current_user, dataset)
    for path in (dataset, dataset / "data/a", dataset / "data/a/b/c", dataset.parent):
        assert path.stat().st_nlink == 1
    assert (dataset / "data/three").stat().st_nlink == 1
