"""Programs that copy and mirror a mount in trouble fail, and what they had copied stays."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.accounts import Account
from tests.support.mounts import mounted
from tests.support.quirky_server import (
    BASE_URI,
    CONTENTS,
    OTHERS,
    TOKEN,
    QuirkyServer,
    quirky_server,
    says,
)

HTML_404 = says(404, b"<html><title>404 Not Found</title>", Content_Type="text/html")
PAGES = {"X_Pagination": '{"total": 2, "total_pages": 1}'}
NAMES = ("first", "second")

# Each is given the source and a directory for its copy; it either ends well, with all of it, or
# says that it did not.
MIRROR = ("rsync", "-a", "--delete")
WALK = """
import os, sys
def fail(error): raise error
for below, directories, names in os.walk(sys.argv[1], onerror=fail):
    target = os.path.join(sys.argv[2], os.path.relpath(below, sys.argv[1]))
    os.makedirs(target, exist_ok=True)
    for name in names:
        with open(os.path.join(below, name), "rb") as file, \
                open(os.path.join(target, name), "wb") as copy:
            copy.write(file.read())
"""
COPYTREE = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)"


class Trouble(NamedTuple):
    """What goes wrong, before anything of the mount was looked at."""

    broken: dict[str, object]  # of the server; see QuirkyServer.broken
    disk: Callable[[Path], None] = lambda cache: None
    # Whether the mount has to go on as if nothing had happened.
    is_survived: bool = False


def remove(cache: Path) -> None:
    shutil.rmtree(cache)


def replace_by_a_file(cache: Path) -> None:
    shutil.rmtree(cache)
    cache.touch()


TROUBLES = {
    "manifests behind a proxy": Trouble({"/manifests/": HTML_404}),
    "readmes and metadata behind a proxy": Trouble({"/readmes/|/signed-urls/": HTML_404}),
    "manifest that is listed and not there": Trouble({"/manifests/": says(404)}),
    "objects that the store lacks": Trouble(
        {"/store/.*/(dtool|data)": says(404, b"<Error><Code>NoSuchKey</Code></Error>")}
    ),
    "listing that contradicts itself": Trouble({"POST /uris": says(200, [], **PAGES)}),
    "listing behind a proxy": Trouble({"POST /uris": HTML_404}),
    "no right any more": Trouble({"POST /uris": says(200, []), "/(manifests|readmes)/": says(403)}),
    "cache that was removed": Trouble({}, remove, is_survived=True),
    "cache that became a file": Trouble({}, replace_by_a_file),
}


@pytest.fixture(scope="module")
def quirky() -> Iterator[QuirkyServer]:
    with quirky_server() as running:
        for name in NAMES:
            running.add(str(uuid.uuid4()), CONTENTS, b"readme: 1\n", name=name, **OTHERS)
        yield running


@pytest.fixture(scope="module")
def base(quirky: QuirkyServer) -> str:
    return f"{quirky.url.replace('http', 'dserver')}/{BASE_URI.replace('://', '/')}"


@pytest.fixture(scope="module")
def backup(
    fuse: None,
    current_user: Account,
    quirky: QuirkyServer,
    base: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A mirror of the mount made while all was well."""
    target = tmp_path_factory.mktemp("backup")
    with mounted(current_user, base, TOKEN, "--read-only") as path:
        current_user.run(*MIRROR, f"{path}/", target, check=True)
    return target


def content_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_programs_fail_and_delete_nothing(
    current_user: Account,
    quirky: QuirkyServer,
    base: str,
    backup: Path,
    tmp_path: Path,
    trouble: Trouble,
) -> None:
    right = content_below(backup)
    assert len(right) == len(NAMES) * (len(CONTENTS) + 1 + 4 + 4)
    cache, archive = tmp_path / "cache", tmp_path / "archive.tar"
    copies = [tmp_path / name for name in ("mirror", "one", "copied", "walked", "tree")]
    for copy in copies[:2]:
        shutil.copytree(backup, copy, symlinks=True)
    for copy in copies[2:]:
        copy.mkdir()
    mirror, one, copied, walked, tree = copies
    with mounted(current_user, base, TOKEN, "--read-only", "--cache-dir", str(cache)) as path:
        trouble.disk(cache)
        quirky.broken = dict(trouble.broken)  # type: ignore[arg-type]
        try:
            statuses = {
                "rsync": current_user.run(*MIRROR, f"{path}/", mirror).returncode,
                "rsync of one": current_user.run(
                    *MIRROR, f"{path}/{NAMES[0]}/", one / NAMES[0]
                ).returncode,
                "cp": current_user.run("cp", "-r", f"{path}/.", copied).returncode,
                "tar": current_user.run("tar", "cf", archive, "-C", path, ".").returncode,
                "walk": current_user.run(current_user.python, "-c", WALK, path, walked).returncode,
                "copytree": current_user.run(
                    current_user.python, "-c", COPYTREE, path, tree
                ).returncode,
            }
        finally:
            quirky.broken = {}

    assert content_below(mirror) == content_below(one) == right
    if trouble.is_survived:
        assert not any(statuses.values()), statuses
    if not statuses["cp"]:
        assert content_below(copied) == right
        assert not any(statuses.values()), statuses
    else:
        assert all(statuses.values()), statuses


def test_tools_are_here() -> None:
    for name in ("rsync", "cp", "tar"):
        assert shutil.which(name), os.environ["PATH"]
