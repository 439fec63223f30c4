"""The file system for fsspec on frozen datasets: what it shows, and that an error is no answer."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

import dserverfs
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import identifier_of
from dserverfs.python import places, range_reads
from dserverfs.python.filesystem import DserverFileSystem
from dserverfs.python.new_dataset import NewDataset
from tests.support.dtool_datasets import content_of
from tests.support.programs import Programs

pytest_plugins = ["tests.support.program_fixtures"]

CONTENTS = {
    "a.txt": b"a\n",
    "sub/big": content_of("fsspec-frozen", 3 * BLOCK_SIZE + 5),
    "sub/[x]? #%.txt": b"odd",
    "sub/deep/\u00e4.txt": b"deep",
}
NAME = "fsspec-frozen"


@pytest.fixture(scope="module")
def data(programs: Programs) -> str:
    """The path of the items of a frozen dataset."""
    with dserverfs.create(programs.base, NAME) as new:
        for relpath, content in CONTENTS.items():
            new.put(relpath, content)
        new.set_readme("about: it\n")
    return f"{programs.path}/{NAME}/data"


def test_every_directory_lists_what_is_in_it(
    fs: DserverFileSystem, programs: Programs, data: str
) -> None:
    dataset = f"{programs.path}/{NAME}"

    assert f"{programs.host}/s3" in fs.ls(programs.host, detail=False)
    assert programs.path in fs.ls(f"{programs.host}/s3", detail=False)
    assert dataset in fs.ls(programs.path, detail=False)
    assert fs.ls(f"dserver://{dataset}/", detail=False) == [f"{dataset}/README.yml", data]
    assert fs.ls(data, detail=False) == [f"{data}/a.txt", f"{data}/sub"]
    assert [each["type"] for each in fs.ls(data)] == ["file", "directory"]
    assert fs.ls(f"{data}/a.txt", detail=False) == [f"{data}/a.txt"]
    assert fs.find(dataset) == sorted(
        [f"{dataset}/README.yml", *(f"{data}/{relpath}" for relpath in CONTENTS)]
    )
    assert fs.glob(f"{data}/**/*.txt") == sorted(
        f"{data}/{relpath}" for relpath in CONTENTS if relpath.endswith(".txt")
    )
    assert fs.du(data) == sum(map(len, CONTENTS.values()))


def test_uuid_and_name_are_one_dataset(
    fs: DserverFileSystem, programs: Programs, data: str
) -> None:
    info = fs.info(data.removesuffix("/data"))
    by_uuid = f"{programs.path}/{info['uuid']}/data/a.txt"

    assert info["uri"] == f"{programs.base}/{info['uuid']}"
    assert fs.cat(by_uuid) == fs.cat(f"{data}/a.txt") == b"a\n"


@pytest.mark.parametrize("relpath", CONTENTS)
def test_item_has_the_manifest_s_facts(fs: DserverFileSystem, data: str, relpath: str) -> None:
    content, path = CONTENTS[relpath], f"{data}/{relpath}"
    info = fs.info(path, overlays=True)

    assert info["name"] == path
    assert info["size"] == len(content)
    assert info["identifier"] == identifier_of(relpath)
    assert info["hash"] == fs.ukey(path) == hashlib.md5(content).hexdigest()
    assert info["overlays"] == {}
    assert fs.checksum(path) == int(info["hash"], 16)
    assert fs.modified(path).timestamp() == pytest.approx(info["mtime"])
    assert fs.created(path) == fs.info(data.removesuffix("/data"))["created"]
    assert fs.cat(path) == content
    with fsspec.open(f"dserver://{path}") as file:
        assert file.read() == content


def test_what_is_not_there_is_not_there(
    fs: DserverFileSystem, programs: Programs, data: str
) -> None:
    dataset = data.removesuffix("/data")
    for path in (
        f"{data}/nope",
        f"{data}/a.txt/x",
        f"{dataset}/other",
        f"{dataset}/.dtool",
        f"{dataset}/README.yml/x",
        f"{programs.path}/nobody-has-this",
        f"{programs.path}/{uuid.uuid4()}",
        f"{programs.host}/s3/not-ours",
        f"{programs.host}/s3x",
    ):
        assert not fs.exists(path)
        assert not fs.isfile(path)
        assert not fs.isdir(path)
        assert fs.find(path) == []
        for use in (fs.info, fs.ls, fs.open, fs.cat):
            with pytest.raises(FileNotFoundError):
                use(path)
    with pytest.raises(IsADirectoryError):
        fs.open(f"{data}/sub")
    for path in ("", "/x", f"{data}/../x", f"{data}//a.txt"):
        with pytest.raises(OSError, match=r"\S"):
            fs.info(path)


@pytest.mark.parametrize("error", [dserverfs.Unreachable("away"), dserverfs.NotAuthenticated("no")])
def test_trouble_is_never_an_answer(
    fs: DserverFileSystem, data: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """fsspec itself takes any error for a file that is not there, and leaves directories out."""

    def fail(*_: object) -> Any:
        raise error

    monkeypatch.setattr(places, "row_at", fail)
    monkeypatch.setattr("dserverfs.python.items.row_at", fail)
    path = f"{data}/sub"

    for use in (
        lambda: fs.exists(path),
        lambda: fs.isdir(path),
        lambda: fs.isfile(path),
        lambda: fs.ls(path),
        lambda: fs.find(data),
        lambda: list(fs.walk(data)),
        lambda: fs.glob(f"{path}/*"),
        lambda: fs.du(data),
        lambda: fs.cat(f"{data}/a.txt"),
        lambda: fs.open(f"{data}/a.txt"),
        lambda: fs.get(data, "/nowhere", recursive=True),
    ):
        with pytest.raises(OSError, match=str(error)) as failure:
            use()
        assert not isinstance(failure.value, FileNotFoundError)
        assert failure.value.__cause__ is error


# Many at once


def test_ranges_of_many_files_are_those_that_were_asked_for(
    fs: DserverFileSystem, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_reads, "AHEAD_BYTES", 2 * BLOCK_SIZE)
    chance = random.Random(2)
    names = sorted(CONTENTS)
    wanted: list[tuple[str, int | None, int | None]] = []
    for _ in range(80):
        name = chance.choice(names)
        size = len(CONTENTS[name])
        bounds = [chance.choice([None, chance.randint(-size - 2, size + 2)]) for _ in range(2)]
        wanted.append((name, bounds[0], bounds[1]))

    found = fs.cat_ranges(
        [f"{data}/{name}" for name, _, _ in wanted],
        [start for _, start, _ in wanted],
        [end for _, _, end in wanted],
        on_error="raise",
    )

    assert found == [CONTENTS[name][start:end] for name, start, end in wanted]
    assert fs.cat_file(f"{data}/sub/big", -7, -2) == CONTENTS["sub/big"][-7:-2]
    assert fs.cat_ranges([], [], []) == []


def test_error_of_one_range_is_its_own(fs: DserverFileSystem, data: str) -> None:
    paths = [f"{data}/a.txt", f"{data}/nope", f"{data}/sub"]

    found = fs.cat_ranges(paths, 0, 1)

    assert found[0] == b"a"
    assert isinstance(found[1], FileNotFoundError)
    assert isinstance(found[2], IsADirectoryError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, 0, 1, on_error="raise")
    with pytest.raises(ValueError, match="as many"):
        fs.cat_ranges(paths, [0], [1])


def test_cat_has_all_that_was_asked_for(fs: DserverFileSystem, data: str) -> None:
    everything = {f"{data}/{relpath}": content for relpath, content in CONTENTS.items()}

    assert fs.cat(data, recursive=True) == everything
    assert fs.cat([f"{data}/a.txt"]) == {f"{data}/a.txt": b"a\n"}
    assert fs.cat(f"{data}/sub/big") == CONTENTS["sub/big"]


def test_letters_of_patterns_may_be_those_of_a_name(
    fs: DserverFileSystem, programs: Programs, data: str, tmp_path: Any
) -> None:
    with dserverfs.create(programs.base, "fsspec-patterns") as new:
        for relpath in ("[ab]/x*", "[ab]/y", "a/x", "b/x"):
            new.put(relpath, relpath.encode())
    top = f"{programs.path}/fsspec-patterns/data"

    assert fs.cat(f"{top}/[ab]/x*") == b"[ab]/x*"
    below = {f"{top}/[ab]/x*": b"[ab]/x*", f"{top}/[ab]/y": b"[ab]/y"}
    assert fs.cat(f"{top}/[ab]", recursive=True) == below
    assert fs.glob(f"{top}/[ab]/x") == [f"{top}/a/x", f"{top}/b/x"]
    fs.get_file(f"{top}/[ab]/x*", str(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == b"[ab]/x*"


def test_copy_that_cannot_be_read_to_its_end_leaves_nothing(
    fs: DserverFileSystem, data: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.get(data, str(tmp_path / "all"), recursive=True)
    found = {
        str(path.relative_to(tmp_path / "all")): path.read_bytes()
        for path in (tmp_path / "all").rglob("*")
        if path.is_file()
    }
    assert found == CONTENTS
    (tmp_path / "two").write_bytes(b"of the user")
    (tmp_path / "two").chmod(0o640)
    (tmp_path / "link").symlink_to("two")

    def fail(*_: object) -> bytes:
        raise OSError("broken")

    monkeypatch.setattr("dserverfs.python.item_file.ItemFile.read", fail)
    for name in ("one", "two", "link"):
        with pytest.raises(OSError, match="broken"):
            fs.get_file(f"{data}/a.txt", str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "link", "two"]
    assert (tmp_path / "two").read_bytes() == b"of the user"

    monkeypatch.undo()
    fs.get_file(f"{data}/a.txt", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "two").read_bytes() == b"a\n"
    assert (tmp_path / "two").stat().st_mode & 0o777 == 0o640
    fs.get_file(f"{data}/a.txt", os.devnull)
    assert not Path(os.devnull).is_file()


# Writing


def test_frozen_dataset_is_not_written(
    fs: DserverFileSystem, programs: Programs, data: str
) -> None:
    for change in (
        lambda: fs.open(f"{data}/a.txt", "wb"),
        lambda: fs.pipe(f"{data}/new", b"x"),
        lambda: fs.rm(f"{data}/a.txt"),
        lambda: fs.mkdir(f"{data}/new"),
        lambda: fs.makedirs(f"{data}/new/er"),
        lambda: fs.rmdir(f"{data}/sub"),
        lambda: fs.cp_file(f"{data}/a.txt", f"{data}/b.txt"),
        lambda: fs.mkdir(programs.path),
    ):
        with pytest.raises(OSError, match="not in a dataset that this program makes") as failure:
            change()
        assert failure.value.errno == 30
    with pytest.raises(FileNotFoundError):
        fs.pipe(f"{programs.path}/nobody-has-this/data/x", b"x")
    assert fs.cat(f"{data}/a.txt") == b"a\n"


def test_transaction_freezes_what_was_begun_in_it(
    fs: DserverFileSystem, programs: Programs, data: str
) -> None:
    one, two = (f"{programs.path}/fsspec-transaction-{n}" for n in (1, 2))

    with fs.transaction:
        with fs.open(f"{one}/data/x.txt", "w") as file:
            file.write("x")
        fs.pipe({f"{two}/data/y": b"y", f"{two}/README.yml": b"about: y\n"})
        fs.cp_file(f"{data}/sub/big", f"{one}/data/big")
        assert fs.cat(f"{one}/data/x.txt") == b"x"
        assert one in fs.ls(programs.path, detail=False)
        with pytest.raises(OSError, match="items are below data/"):
            fs.pipe(f"{one}/rogue", b"x")

    assert {*dserverfs.open(f"dserver://{one}").items} == {"x.txt", "big"}
    assert dserverfs.open(f"dserver://{two}").readme == "about: y\n"
    assert fs.cat(f"{one}/data/big") == CONTENTS["sub/big"]


def test_transaction_that_fails_leaves_nothing(fs: DserverFileSystem, programs: Programs) -> None:
    path = f"{programs.path}/fsspec-transaction-failed"

    def fail() -> None:
        with fs.transaction:
            fs.pipe(f"{path}/data/x", b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert not fs.exists(path)
    assert path not in fs.ls(programs.path, detail=False)


def test_transaction_may_be_begun_and_ended_by_calls(
    fs: DserverFileSystem, programs: Programs
) -> None:
    path = f"{programs.path}/fsspec-transaction-calls"

    fs.start_transaction()
    with ThreadPoolExecutor(8) as pool:
        written = pool.map(lambda n: fs.pipe(f"{path}/data/{n}", b"x"), range(16))
        assert [*written] == [None] * 16
    fs.end_transaction()

    assert len(dserverfs.open(f"dserver://{path}").items) == 16


def test_all_datasets_of_a_transaction_are_frozen_but_those_that_cannot_be(
    fs: DserverFileSystem, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"{programs.path}/fsspec-transaction-all-{n}" for n in range(3)]
    freeze = NewDataset.freeze

    def freeze_all_but_one(new: NewDataset) -> Any:
        if new.name.endswith("-1"):
            raise dserverfs.Unreachable("the server is away")
        return freeze(new)

    monkeypatch.setattr(NewDataset, "freeze", freeze_all_but_one)
    transaction = fs.transaction
    with pytest.raises(OSError, match="the server is away"), transaction:
        fs.pipe({f"{path}/data/x": b"x" for path in paths})

    monkeypatch.undo()
    for path in (paths[0], paths[2]):
        assert {*dserverfs.open(f"dserver://{path}").items} == {"x"}
    (left,) = transaction.begun
    assert left.freeze()["x"].read_bytes() == b"x"


def test_file_system_goes_to_other_processes_as_it_is(
    programs: Programs, data: str, tmp_path: Any
) -> None:
    fs = fsspec.filesystem("dserver", verify="strict", cache_dir=str(tmp_path))

    copy = pickle.loads(pickle.dumps(fs))  # noqa: S301 - our own

    assert copy is fs
    assert copy._access(programs.host).verify == "strict"
    assert copy.cat(f"{data}/a.txt") == b"a\n"
    assert (tmp_path / "blocks").is_dir()
