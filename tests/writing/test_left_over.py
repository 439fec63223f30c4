"""Files that are no part of a dataset: kept with their paths when the rest is deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dserverfs.base.excluded import DEFAULT, Excluded
from dserverfs.writing.staging import left_over, sealing
from tests.support.freezing import WAIT_S, FreezeBench, freeze_bench, seal

EXCLUDED = (".DS_Store", "sub/.DS_Store", "sub/__pycache__/deep/a.pyc")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreezeBench:
    bench = freeze_bench(tmp_path / "staging", monkeypatch)
    bench.staged.excluded = Excluded(DEFAULT)
    return bench


def write(bench: FreezeBench, *relpaths: str) -> None:
    for relpath in relpaths:
        path = bench.staged.tree / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(relpath)


def kept(bench: FreezeBench) -> dict[str, str]:
    """Return the content of all that is kept, by path."""
    directory = bench.staged.kept_directory
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_text() for path in files}


@pytest.mark.parametrize("below", ["", "data/"])
def test_what_is_excluded_is_told_and_kept(bench: FreezeBench, below: str) -> None:
    (bench.staged.tree / "file").unlink()
    write(bench, "README.yml", f"{below}a", *(f"{below}{relpath}" for relpath in EXCLUDED))

    result = bench.freezer.freeze(bench.staged).result(WAIT_S)
    bench.settle()

    (note,) = (
        note for note in result.notes if note.startswith("left out, as DSERVER_EXCLUDE says, ")
    )
    assert str(bench.staged.kept_directory) in note
    assert "sub/__pycache__/" in note
    assert kept(bench) == {f"{below}{relpath}": f"{below}{relpath}" for relpath in EXCLUDED}
    assert bench.staged.kept_directory.stat().st_mode & 0o777 == 0o700
    assert not bench.staged.directory.exists()
    assert list(bench.server.registered_uuids.values()) == [1]


def test_crash_while_leavings_are_kept_loses_none(
    bench: FreezeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, *EXCLUDED)
    seal(bench.staged)
    local = sealing.load(bench.staged)
    rename = os.rename
    renamed: list[Path] = []

    def killed(source: Path, target: Path) -> None:
        if renamed:
            raise SystemExit
        renamed.append(target)
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed)
        with pytest.raises(SystemExit):
            left_over.keep(bench.staged, local)
    assert len(kept(bench)) == 1
    left_over.keep(bench.staged, local)

    assert kept(bench) == {relpath: relpath for relpath in EXCLUDED}
    assert (bench.staged.tree / "file").exists()


def test_what_is_in_an_excluded_directory_is_kept_whatever_it_is(
    bench: FreezeBench, tmp_path: Path
) -> None:
    directory = bench.staged.tree / "__pycache__"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path)
    os.mkfifo(directory / "pipe")
    Path(os.fsdecode(os.fsencode(directory) + b"/\xff")).write_text("no text")

    bench.freezer.freeze(bench.staged).result(WAIT_S)
    bench.settle()

    kept = bench.staged.kept_directory
    assert len(os.listdir(kept / "__pycache__")) == 3
    assert (kept / "__pycache__/link").readlink() == tmp_path
    assert not bench.staged.directory.exists()
    (found,) = left_over.all_kept(bench.staging.directory)
    assert found == (kept, 3, len("no text") + len(str(tmp_path)))
