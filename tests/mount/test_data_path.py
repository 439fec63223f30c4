"""DIR/data/x is the item x, before and after the freeze, whatever is done there."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.staged_datasets import freeze

pytest_plugins = ["tests.support.mount_fixtures"]


@pytest.fixture
def dataset(base: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A dataset with an item, and one in a directory."""
    path = base / request.node.name.replace("[", "-").replace("]", "")[:70]
    path.mkdir()
    (path / "x").write_text("content")
    (path / "sub").mkdir()
    (path / "sub/y").write_text("deep")
    (path / "empty").mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_items_have_one_path_before_and_after_the_freeze(
    dataset: Path, current_user: Account
) -> None:
    def look() -> None:
        assert (dataset / "data/x").read_text() == "content"
        assert {"sub", "x"} <= {path.name for path in (dataset / "data").iterdir()}
        assert [str(p.relative_to(dataset)) for p in sorted(dataset.glob("data/*/y"))] == [
            "data/sub/y"
        ]
        assert (dataset / "data").is_dir()

    look()
    assert sorted(os.listdir(dataset)) == ["empty", "sub", "x"]  # no listing shows it

    freeze(current_user, dataset)

    look()
    assert (dataset / "x").read_text() == "content"
    assert stat.S_ISDIR(os.lstat(dataset / "data").st_mode)


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda data: (data / "new").write_text("new"),
    "write": lambda data: (data / "x").write_text("other"),
    "truncate": lambda data: os.truncate(data / "sub/y", 1),
    "mkdir": lambda data: (data / "more/deeper").mkdir(parents=True),
    "rename": lambda data: (data / "x").rename(data / "sub/x"),
    "rename-out": lambda data: (data / "x").rename(data.parent / "z"),
    "replace": lambda data: (data / "x").replace(data / "sub/y"),
    "unlink": lambda data: (data / "x").unlink(),
    "rmdir": lambda data: (data / "empty").rmdir(),
    "rmtree": lambda data: shutil.rmtree(data / "sub"),
    "link": lambda data: os.link(data / "x", data / "sub/x"),
    "chmod": lambda data: (data / "x").chmod(0o600),
    "times": lambda data: os.utime(data / "x", (1, 2)),
    "makedirs": lambda data: os.makedirs(data, exist_ok=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_by_that_path_is_one_of_the_items(
    dataset: Path, tmp_path: Path, change: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "x").write_text("content")
    (tmp_path / "sub/y").write_text("deep")
    (tmp_path / "data").symlink_to(".")

    CHANGES[change](tmp_path / "data")
    CHANGES[change](dataset / "data")

    (tmp_path / "data").unlink()
    assert described(dataset) == described(tmp_path)


def described(directory: Path) -> dict[str, tuple[int, str]]:
    """Return mode and content of all that is below a directory."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mode,
            path.read_text() if path.is_file() else "",
        )
        for path in sorted(directory.rglob("*"))
    }


def test_data_can_be_made_as_long_as_there_is_no_item(base: Path, current_user: Account) -> None:
    dataset = base / "data-first"
    (dataset / "data").mkdir(parents=True)
    (dataset / "data/x").write_text("content")
    (dataset / "README.yml").write_text("---\n")

    freeze(current_user, dataset)

    assert md5_of_files(current_user, dataset / "data").keys() == {"x"}


@pytest.mark.parametrize(
    "copy",
    [
        'cp -r "$1" "$2"',
        'cp -a "$1" "$2"',
        'mkdir "$2" && tar -C "$1" -c . | tar -C "$2" -x',
        'rsync -a "$1/" "$2"',
    ],
    ids=["cp -r", "cp -a", "tar", "rsync"],
)
def test_directory_with_a_data_in_it_is_copied_as_it_is(
    base: Path, current_user: Account, tmp_path: Path, copy: str
) -> None:
    project = tmp_path / "project"
    for relpath in ("README.md", "data/README.md", "data/x.csv", "analysis/code.py", "zz/last"):
        (project / relpath).parent.mkdir(parents=True, exist_ok=True)
        (project / relpath).write_text(relpath)
    dataset = base / f"project-{abs(hash(copy))}"

    current_user.run("sh", "-euc", copy, "sh", project, dataset, check=True)

    assert described(dataset).keys() == described(project).keys()
    assert md5_of_files(current_user, dataset) == md5_of_files(current_user, project)


def test_link_is_replaced_by_what_is_made_in_its_place(dataset: Path) -> None:
    """As rsync and tar do with a link that is where a directory has to be."""
    os.unlink(dataset / "data")

    (dataset / "data").mkdir()
    (dataset / "data/x").write_text("another")

    assert (dataset / "x").read_text() == "content"
    assert sorted(os.listdir(dataset)) == ["data", "empty", "sub", "x"]
