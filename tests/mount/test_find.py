"""`.find` in a mount: programs reach it by name, and copy and walk past it."""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.accounts import Account
from tests.support.mounts import mounted
from tests.support.quirky_server import (
    BASE_URI,
    CONTENTS,
    TOKEN,
    QuirkyServer,
    quirky_server,
    says,
)
from tests.support.servers import ServerHandle, new_uuid, upload

pytest_plugins = ["tests.support.mount_fixtures"]


class Dataset(NamedTuple):
    name: str
    uuid: str
    tag: str


@pytest.fixture(scope="module")
def dataset(server: ServerHandle) -> Dataset:
    tag, name = new_uuid(), "to-be-found"
    uri = upload(server, {"item": b"content"}, readme=b"zebrafish larvae", name=name, tags=[tag])
    return Dataset(name, uri.rpartition("/")[2], tag)


def test_links_lead_to_datasets(base: Path, dataset: Dataset) -> None:
    found = base / ".find/tag" / dataset.tag
    link = found / dataset.name

    assert os.listdir(found) == [dataset.name]
    assert stat.S_ISLNK(os.lstat(link).st_mode)
    assert os.readlink(link) == f"../../../{dataset.name}"
    assert os.path.realpath(link) == str(base / dataset.name)
    assert (link / "data/item").read_bytes() == b"content"
    assert (base / ".find/uuid" / dataset.uuid / "README.yml").read_text() == "zebrafish larvae"
    assert (base / ".find/text/larvae" / dataset.name).samefile(base / dataset.name)
    assert dataset.name in os.listdir(base / ".find/creator/grumpy")
    assert os.listdir(base / ".find/tag/nobodys") == []
    assert {entry.name for entry in os.scandir(base / ".find") if entry.is_dir()} == {
        *("tag", "creator", "text", "uuid")
    }
    with pytest.raises(FileNotFoundError):
        os.stat(base / ".find/uuid" / new_uuid())


def test_command_looks_at_what_a_path_is_in(
    current_user: Account, base: Path, dataset: Dataset, server: ServerHandle
) -> None:
    staged = base / "find-staged"
    staged.mkdir()
    for path in (base / ".find/uuid" / dataset.uuid, staged):
        done = current_user.dserverfs(
            *("find", path, "--uri", "--tag", dataset.tag), env={"DSERVER_TOKEN": server.token}
        )
        assert (done.stdout, done.stderr) == (f"{server.base_uri}/{dataset.uuid}\n", "")
    staged.rmdir()


Change = Callable[[Path, Path, str], object]  # in a mount, of a search's directory and a link

CHANGES: dict[str, tuple[int, Change]] = {
    "mkdir": (errno.EROFS, lambda base, found, name: os.mkdir(found / "new")),
    "mkdir of what is there": (
        errno.EEXIST,
        lambda base, found, name: os.mkdir(base / ".find/tag/new"),
    ),
    "mkdir beside the kinds": (errno.EROFS, lambda base, found, name: os.mkdir(base / ".find/new")),
    "a file": (errno.EROFS, lambda base, found, name: (found / "new").touch()),
    "a link": (errno.EROFS, lambda base, found, name: os.symlink("x", found / "new")),
    "unlink": (errno.EROFS, lambda base, found, name: os.unlink(found / name)),
    "rename": (errno.EROFS, lambda base, found, name: os.rename(found / name, found / "new")),
    "out of it": (errno.EXDEV, lambda base, found, name: os.rename(found / name, base / "new")),
    "into it": (errno.EXDEV, lambda base, found, name: os.rename(base / name, found / "new")),
    "chmod": (errno.EROFS, lambda base, found, name: os.chmod(found, 0o700)),
    "rmdir of the top": (errno.EROFS, lambda base, found, name: os.rmdir(base / ".find")),
    "rename of the top": (
        errno.EROFS,
        lambda base, found, name: os.rename(base / ".find", base / "new"),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_is_made_there(base: Path, dataset: Dataset, what: str) -> None:
    number, change = CHANGES[what]
    before = sorted(os.listdir(base))

    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        change(base, base / ".find/tag" / dataset.tag, dataset.name)

    assert sorted(os.listdir(base)) == before


# A mount of one dataset


@pytest.fixture(scope="module")
def quirky() -> Iterator[QuirkyServer]:
    with quirky_server() as running:
        running.add(new_uuid(), CONTENTS, name="small", tags=["t"])
        yield running


@pytest.fixture(scope="module")
def small(fuse: None, current_user: Account, quirky: QuirkyServer) -> Iterator[Path]:
    base = f"{quirky.url.replace('http', 'dserver')}/{BASE_URI.replace('://', '/')}"
    with mounted(current_user, base, TOKEN, "--read-only") as path:
        yield path


def test_programs_that_walk_and_copy_do_not_come_there(
    current_user: Account, small: Path, tmp_path: Path
) -> None:
    assert os.listdir(small / ".find/tag/t") == ["small"]
    for command in (
        ("rsync", "-a", f"{small}/", tmp_path / "mirror"),
        ("cp", "-r", f"{small}/.", tmp_path / "copy"),
        ("tar", "cf", tmp_path / "archive.tar", "-C", small, "."),
        ("find", small, "-fprint", tmp_path / "walked"),
    ):
        current_user.run(*command, check=True)

    assert os.listdir(tmp_path / "mirror") == os.listdir(tmp_path / "copy") == ["small"]
    with tarfile.open(tmp_path / "archive.tar") as archive:
        names = archive.getnames()
    walked = (tmp_path / "walked").read_text().splitlines()
    assert len(names) == len(walked) > len(CONTENTS)
    assert [name for name in [*names, *walked] if ".find" in name] == []


def test_server_that_is_away_is_an_error(small: Path, quirky: QuirkyServer) -> None:
    assert os.listdir(small / ".find/tag/t") == ["small"]
    quirky.broken["/me|/uris"] = says(401, {"msg": "Token has expired"})

    with pytest.raises(PermissionError):
        os.listdir(small / ".find/tag/other")
    with pytest.raises(PermissionError):
        os.stat(small / ".find/uuid" / new_uuid())
    assert os.listdir(small / ".find/tag/t") == ["small"]
