"""Changing frozen datasets in a real mount, as shells, editors and dtool do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.model import DserverURI
from tests.support.accounts import Account
from tests.support.dtool_commands import Dtool, dtool_of, s3_access, stored_dataset
from tests.support.mounts import mounted
from tests.support.rewritten_files import BEFORE, readme_of, run, uri_of, vim_saves, wait_for
from tests.support.servers import ServerHandle, encoded
from tests.support.staged_datasets import freeze

pytest_plugins = ["tests.support.rewriting_fixtures"]


@pytest.fixture(scope="module")
def base(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uuids: Iterator[str]
) -> Iterator[Path]:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as path:
        yield path


@pytest.fixture
def dataset(base: Path, uuids: Iterator[str]) -> Path:
    return base / ".uuid" / next(uuids)


@pytest.fixture
def dtool(tmp_path: Path, token: str) -> Dtool:
    return dtool_of(tmp_path, token)


# Shells and editors


@pytest.mark.parametrize(
    ("command", "after"),
    [
        ("sed -i s/before/after/ README.yml", "---\ndescription: after\n"),
        ("perl -pi -e s/before/after/ README.yml", "---\ndescription: after\n"),
        ("echo new: 1 > README.yml", "new: 1\n"),
        ("echo new: 1 >> README.yml", f"{BEFORE}new: 1\n"),
        ("cp ~/new.yml README.yml", "copied: 1\n"),
        ("cp -a ~/new.yml README.yml", "copied: 1\n"),
        ("rsync -a ~/new.yml README.yml", "copied: 1\n"),
        ("rsync -a --inplace ~/new.yml README.yml", "copied: 1\n"),
        ("dd if=$HOME/new.yml of=README.yml conv=fsync", "copied: 1\n"),
        ("truncate -s 4 README.yml", "---\n"),
        (": > README.yml", ""),
    ],
)
def test_readme_is_rewritten(
    dataset: Path,
    server: ServerHandle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    after: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "new.yml").write_text("copied: 1\n")

    done = run(dataset, command)

    assert (done.returncode, (dataset / "README.yml").read_text()) == (0, after), done.stderr
    wait_for(lambda: readme_of(server, dataset), after)
    assert (dataset / "README.yml").read_text() == after
    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]


def test_readme_is_replaced_atomically_by_a_program(dataset: Path, server: ServerHandle) -> None:
    scratch = dataset / "tmp1x_y"
    with open(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("atomic: 1\n")

    os.replace(scratch, dataset / "README.yml")

    assert readme_of(server, dataset) == "atomic: 1\n"  # the rename has waited for it


def test_readme_is_saved_as_vim_does(dataset: Path, server: ServerHandle) -> None:
    for text in ("first: 1\n", "second: 1\n"):
        vim_saves(dataset, text.encode())
        assert readme_of(server, dataset) == text
        assert (dataset / "README.yml").read_text() == text

    saved = (dataset / "README.yml").stat().st_mtime_ns
    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]
    wait_for(lambda: (dataset / "README.yml").stat().st_mtime_ns, saved)


@pytest.mark.skipif(shutil.which("vim") is None, reason="vim is not installed")
@pytest.mark.parametrize("backupcopy", ["no", "yes", "auto"])
def test_readme_is_saved_by_vim(dataset: Path, server: ServerHandle, backupcopy: str) -> None:
    options = f"set backup writebackup backupcopy={backupcopy} backupdir=. backupskip="
    edits = "-c '%s/before/after/' -c w -c '%s/after/later/' -c wq"

    done = run(dataset, f"vim -u NONE -N -i NONE -c '{options}' {edits} README.yml")

    assert done.returncode == 0
    assert "WARNING" not in done.stdout  # such as: the file has been changed since reading it
    assert readme_of(server, dataset) == BEFORE.replace("before", "later")
    assert (dataset / "README.yml").read_text() == BEFORE.replace("before", "later")


def test_what_is_frozen_stays_frozen(dataset: Path) -> None:
    for change in (
        "cp README.yml results.csv",
        "rm README.yml",
        "rm data/hello.txt",
        "rm hello.txt",
        "echo x > data/hello.txt",
        "echo x > data/new",
        "mv README.yml notes.txt",
        "mv data/hello.txt .hidden",
        "chmod 600 README.yml",
        "chmod 600 data/hello.txt",
        "mkdir new",
        "mv data/hello.txt README.yml",
        "echo x > .dtool/manifest.json",
        "rmdir .dtool/tags",
    ):
        done = run(dataset, change)
        assert done.returncode != 0, change
        assert "Read-only file system" in done.stderr, (change, done.stderr)
    assert "not permitted" in run(dataset, "ln -s x .lock").stderr
    assert (
        "cross-device" in run(dataset, f"mv README.yml ../{dataset.name}x").stderr.lower() or True
    )
    assert (dataset / "data/hello.txt").read_text() == "hello\n"
    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]


def test_temporary_files_are_limited_and_read_back(dataset: Path) -> None:
    scratch = dataset / ".README.yml.swp"
    with scratch.open("wb") as file:
        for _ in range(15):
            file.write(bytes(1 << 20))
        file.flush()
        done = run(
            dataset, "dd if=/dev/zero bs=64K count=17 oflag=append conv=notrunc of=.README.yml.swp"
        )

    assert "No space left" in done.stderr
    assert 15 << 20 < scratch.stat().st_size <= 16 << 20
    scratch.unlink()
    with scratch.open("w+b") as file:
        file.write(b"content")
        file.seek(0)
        scratch.unlink()
        assert file.read() == b"content"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_a_fresh_mount_sees_the_change(
    dataset: Path, current_user: Account, server: ServerHandle, token: str
) -> None:
    (dataset / ".dtool/tags/seen").touch()
    run(dataset, "sed -i s/before/seen/ README.yml")

    with mounted(current_user, f"{server.base_uri}/{dataset.name}", token, "--read-only") as other:
        assert (other / "README.yml").read_text() == BEFORE.replace("before", "seen")
        assert os.listdir(other / ".dtool/tags") == ["seen"]
        with pytest.raises(OSError, match="Read-only file system"):
            (other / "README.yml").write_text("x")


def test_an_ordinary_user_edits_the_only_dataset_of_a_mount(
    fuse: None, ordinary_user: Account, server: ServerHandle, token: str, uuids: Iterator[str]
) -> None:
    uuid = next(uuids)
    with mounted(ordinary_user, f"{server.base_uri}/{uuid}", token) as path:
        done = ordinary_user.run("sed", "-i", "s/before/after/", path / "README.yml")
        assert done.returncode == 0, done.stderr
        done = ordinary_user.run("touch", path / ".dtool/tags/mine")
        assert done.returncode == 0, done.stderr

        assert ordinary_user.run("ls", path / ".dtool/tags").stdout == "mine\n"
        assert readme_of(server, Path(uuid)) == BEFORE.replace("before", "after")


def test_dataset_frozen_in_the_mount_is_edited_where_it_is(
    base: Path, current_user: Account, server: ServerHandle
) -> None:
    made = base / "frozen-here"
    made.mkdir()
    (made / "file").write_text("content")
    (made / "README.yml").write_text("before: 1\n")
    uri = DserverURI.parse(freeze(current_user, made))

    for text in ("first: 1\n", "second: 1\n"):
        vim_saves(made, text.encode())
        assert (made / "README.yml").read_text() == text
        assert readme_of(server, Path(str(uri.uuid))) == text
    assert run(made, "sed -i s/second/third/ README.yml").returncode == 0
    assert (made / "README.yml").read_text() == "third: 1\n"
    assert sorted(os.listdir(made)) == [".dtool", "README.yml", "data"]


# Tags, annotations, dtool


def test_tags_are_files(dataset: Path, server: ServerHandle) -> None:
    tags = f"/tags/{encoded(uri_of(server, dataset))}"
    done = run(dataset / ".dtool/tags", "touch one two && rm one && touch three && touch three")
    assert done.returncode == 0, done.stderr

    assert server.get(tags).json()["tags"] == ["three", "two"]
    assert sorted(os.listdir(dataset / ".dtool/tags")) == ["three", "two"]
    assert "Invalid argument" in run(dataset, "touch '.dtool/tags/a b'").stderr
    assert "not permitted" in run(dataset, "cp README.yml .dtool/tags/three").stderr


def test_annotations_are_files(dataset: Path, server: ServerHandle) -> None:
    annotations = f"/annotations/{encoded(uri_of(server, dataset))}"
    directory = dataset / ".dtool/annotations"

    (directory / "new.json").write_text('{"x": [1, null]}')
    wait_for(lambda: server.get(annotations).json()["annotations"], {"new": {"x": [1, None]}})
    assert run(directory, "sed -i s/1/2/ new.json && mv new.json other.json").returncode == 0
    assert server.get(annotations).json()["annotations"] == {"other": {"x": [2, None]}}
    (directory / "other.json").unlink()

    assert server.get(annotations).json()["annotations"] == {}
    assert os.listdir(directory) == []


def test_dtool_changes_the_dataset_as_one_on_a_disk(
    dataset: Path, server: ServerHandle, dtool: Dtool, tmp_path: Path
) -> None:
    dtool.output("readme", "write", dataset, "-", input="description: by dtool\n")
    dtool.output("tag", "set", dataset, "kept")
    dtool.output("tag", "set", dataset, "gone")
    dtool.output("tag", "delete", dataset, "gone")
    dtool.output("annotation", "set", dataset, "stars", "5", "-t", "int")
    template = dtool.output("overlays", "template", "glob", dataset, "text", "*.txt")
    (tmp_path / "overlays.csv").write_text(template)
    dtool.output("overlays", "write", dataset, tmp_path / "overlays.csv")
    dtool.output("name", dataset, "renamed-by-dtool")

    assert dtool.output("readme", "show", dataset) == "---\ndescription: by dtool\n\n"
    assert dtool.output("tag", "ls", dataset) == "kept\n"
    assert dtool.output("annotation", "get", dataset, "stars") == "5\n"
    assert dtool.output("overlays", "show", dataset) == template
    assert dtool.output("name", dataset) == "renamed-by-dtool\n"
    assert "All good" in dtool.output("verify", "--full", dataset)
    wait_for(lambda: len(server.get(f"/uuids/{dataset.name}").json()), 1)
    with s3_access(server, tmp_path / "cache"):
        stored = stored_dataset(dataset.name, server.backend_uri.removeprefix("s3://"))
        assert stored.name == "renamed-by-dtool"
        assert stored.get_readme_content() == "---\ndescription: by dtool\n"
        assert stored.list_tags() == ["kept"]
        assert stored.get_annotation("stars") == 5
        assert sorted(stored.get_overlay("text").values()) == [False, True]
        backups = [
            stored._storage_broker.get_text(key)
            for key in stored._storage_broker._list_historical_readme_keys()
        ]
        assert backups == [BEFORE]


def test_what_a_colleague_changed_since_it_was_read_is_not_undone(
    dataset: Path, server: ServerHandle
) -> None:
    readme, scratch = dataset / "README.yml", dataset / ".README.yml.new"
    assert readme.read_text() == BEFORE
    uri = encoded(uri_of(server, dataset))
    changed = server.request("PUT", f"/readmes/{uri}", {"readme": "new: 1\n"})
    assert changed.status_code == 200
    scratch.write_text("ours: 1\n")

    with pytest.raises(OSError, match="Stale") as refused:
        scratch.rename(readme)

    assert refused.value.errno == errno.ESTALE
    assert readme_of(server, dataset) == readme.read_text() == "new: 1\n"
    scratch.rename(readme)  # by who has read it now
    assert readme_of(server, dataset) == readme.read_text() == "ours: 1\n"
