"""A real mount of a real server: ordinary tools, dtool, and right bytes."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.dtool_datasets import README, SIZES, content_of, make_varied_dataset
from tests.support.mounts import mounted, publish
from tests.support.servers import ServerHandle

DTOOL = Path(sys.executable).with_name("dtool")
NAME = "read-in-a-mount"  # of no other dataset in the base URI


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_varied_dataset(tmp_path_factory.mktemp("local"), NAME)


@pytest.fixture(scope="module")
def uri(
    server: ServerHandle, token: str, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), original)[0]


@pytest.fixture(scope="module")
def reader(account: Account) -> Account:
    """Who reads: each user a mount must work for."""
    return account


@pytest.fixture(scope="module")
def base(fuse: None, reader: Account, server: ServerHandle, token: str, uri: str) -> Iterator[Path]:
    """The base URI, mounted."""
    with mounted(reader, server.base_uri, token) as path:
        yield path


@pytest.fixture
def dataset(base: Path) -> Path:
    return base / NAME


@pytest.fixture(scope="module")
def own_base(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> Iterator[Path]:
    """The base URI, mounted by whoever runs the tests: nobody else, not even root, may look."""
    with mounted(current_user, server.base_uri, token) as path:
        yield path


@pytest.fixture
def own(own_base: Path) -> Path:
    return own_base / NAME


def run(reader: Account, *command: str | Path) -> str:
    done = reader.run(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest_of(reader: Account, dataset: Path) -> dict[str, dict[str, str]]:
    manifest = json.loads(run(reader, "cat", dataset / ".dtool/manifest.json"))
    items: dict[str, dict[str, str]] = manifest["items"]
    return items


def md5sums(reader: Account, directory: Path) -> dict[str, str]:
    """Return the MD5 of every file below `directory`, as md5sum finds them."""
    done = reader.run(
        "sh", "-c", f"cd '{directory}' && find . -type f -print0 | xargs -0 md5sum -z"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.split("\0") if line]
    return {line[34:].removeprefix("./"): line[:32] for line in lines}


@pytest.fixture
def sums(original: Path) -> dict[str, str]:
    """The MD5 of every item, from the local original."""
    data = original / "data"
    return {
        str(path.relative_to(data)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in data.rglob("*")
        if path.is_file()
    }


def test_md5sum_of_every_item_is_the_manifests(
    reader: Account, dataset: Path, sums: dict[str, str]
) -> None:
    found = md5sums(reader, dataset / "data")

    assert found == sums
    assert found == {
        item["relpath"]: item["hash"] for item in manifest_of(reader, dataset).values()
    }


def test_layout_is_dtools(reader: Account, dataset: Path) -> None:
    listed = run(reader, "find", dataset, "-mindepth", "1", "-not", "-path", "*/data/*")

    assert sorted(line.removeprefix(f"{dataset}/") for line in listed.split()) == [
        ".dtool",
        ".dtool/README.txt",
        ".dtool/annotations",
        ".dtool/annotations/answer.json",
        ".dtool/dtool",
        ".dtool/manifest.json",
        ".dtool/overlays",
        ".dtool/overlays/odd.json",
        ".dtool/structure.json",
        ".dtool/tags",
        ".dtool/tags/testing",
        "README.yml",
        "data",
    ]


def test_metadata_is_that_of_the_original(reader: Account, dataset: Path, original: Path) -> None:
    assert run(reader, "cat", dataset / "README.yml") == README
    for name in ("dtool", "overlays/odd.json", "annotations/answer.json", "structure.json"):
        found = json.loads(run(reader, "cat", dataset / ".dtool" / name))
        assert found == json.loads((original / ".dtool" / name).read_text()), name
    expected = json.loads((original / ".dtool/manifest.json").read_text())
    assert manifest_of(reader, dataset) == expected["items"]


def test_attributes_are_true(own: Path, original: Path) -> None:
    for relpath, size in SIZES.items():
        found, expected = (own / "data" / relpath).stat(), (original / "data" / relpath).stat()
        assert found.st_size == size
        assert found.st_blocks == -(-size // 512)
        assert found.st_mtime == pytest.approx(expected.st_mtime, abs=1e-3)
        assert found.st_mode == 0o100644
        assert found.st_uid == os.getuid()
    assert (own / "data").stat().st_mode == 0o40755


def test_inode_numbers_are_stable_and_unique(own: Path) -> None:
    def numbers() -> dict[Path, int]:
        return {path: path.lstat().st_ino for path in [own, *own.rglob("*")]}

    first = numbers()

    assert numbers() == first
    assert len(set(first.values())) == len(first)
    for path, number in first.items():
        with os.scandir(path.parent) as entries:
            assert {entry.name: entry.inode() for entry in entries}[path.name] == number


def test_copy_out_is_a_dataset_dtool_accepts(
    reader: Account, current_user: Account, dataset: Path, sums: dict[str, str]
) -> None:
    copy = reader.home / "copy"

    run(reader, "cp", "-r", dataset, copy)

    run(current_user, DTOOL, "verify", "--full", copy)
    assert md5sums(reader, copy / "data") == sums


def test_dtool_works_on_the_mounted_path(current_user: Account, own: Path, original: Path) -> None:
    for command in (["summary"], ["ls"], ["verify"], ["uuid"], ["readme", "show"], ["tag", "ls"]):
        expected = run(current_user, DTOOL, *command, original)
        assert run(current_user, DTOOL, *command, own) == expected
    identifier = next(iter(manifest_of(current_user, original)))
    path = run(current_user, DTOOL, "item", "fetch", own, identifier).strip()
    relpath = manifest_of(current_user, original)[identifier]["relpath"]
    assert Path(path).read_bytes() == content_of(relpath, SIZES[relpath])
    assert NAME in run(current_user, DTOOL, "ls", own.parent)


def test_rsync_brings_everything_and_then_nothing(reader: Account, dataset: Path) -> None:
    target = reader.home / "rsynced"

    run(reader, "rsync", "-a", f"{dataset}/", target)
    again = run(reader, "rsync", "-ai", f"{dataset}/", target)

    assert again == ""
    assert md5sums(reader, target) == md5sums(reader, dataset)


def test_tar_takes_every_byte(reader: Account, dataset: Path) -> None:
    archive = reader.home / "dataset.tar"
    run(reader, "tar", "-C", dataset, "-cf", archive, ".")

    run(reader, "tar", "-C", dataset, "--compare", "-f", archive)

    names = run(reader, "tar", "-tf", archive, "--quoting-style=literal", "--null")
    assert "names/ünïcödé 文字.txt" in names


def test_grep_finds_what_is_there(reader: Account, dataset: Path) -> None:
    found = run(reader, "grep", "-rlF", "made for tests", dataset)

    assert found == f"{dataset}/README.yml\n"


@pytest.mark.parametrize("relpath", ["block+1.bin", "large/five-blocks.bin", "one-byte"])
def test_mmap_and_o_direct_read_the_same(own: Path, relpath: str) -> None:
    expected = content_of(relpath, SIZES[relpath])
    fd = os.open(own / "data" / relpath, os.O_RDONLY)
    direct = os.open(own / "data" / relpath, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == expected
        size = len(expected)
        for offset in (0, 4096, 512 * 1024 - 512, 1024 * 1024 - 4096, max(0, size - 5), size):
            buffer = mmap.mmap(-1, 2 * 1024 * 1024)
            count = os.preadv(direct, [buffer], offset)
            assert buffer[:count] == expected[offset : offset + 2 * 1024 * 1024]
    finally:
        os.close(fd)
        os.close(direct)


def test_fifty_parallel_readers_of_one_item_get_right_bytes(own: Path) -> None:
    relpath = "large/five-blocks.bin"
    expected = hashlib.md5(content_of(relpath, SIZES[relpath])).hexdigest()

    def read(_: int) -> str:
        return hashlib.md5((own / "data" / relpath).read_bytes()).hexdigest()

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(read, range(50))) == {expected}


def test_frozen_means_erofs(reader: Account, dataset: Path) -> None:
    item = dataset / "data/one-byte"
    for command in (
        ["rm", item],
        ["mv", item, dataset / "data/other"],
        ["touch", item],
        ["chmod", "600", item],
        ["mkdir", dataset / "data/new"],
        ["ln", "-s", "x", dataset / "data/link"],
        ["ln", item, dataset / "data/link"],
        ["truncate", "-s", "0", item],
        ["rmdir", dataset / "data/large"],
        ["sh", "-c", f"echo x > '{dataset}/data/new'"],
    ):
        done = reader.run(*command)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr, command


def test_names_that_are_not_there_are_enoent(own: Path) -> None:
    for path in ("data/missing", "missing", ".dtool/missing", "data/large/missing", "README.yml~"):
        with pytest.raises(FileNotFoundError):
            (own / path).stat()
    with pytest.raises(FileNotFoundError):
        os.stat(os.fsencode(own / "data") + b"/not-utf8-\xff")


def test_uuid_names_the_same_dataset(own: Path, uri: str) -> None:
    alias = own.parent / ".uuid" / uri.rpartition("/")[2]

    assert (alias / "data/one-byte").read_bytes() == (own / "data/one-byte").read_bytes()
    assert ".uuid" not in os.listdir(own.parent)
    assert alias.stat().st_ino != own.stat().st_ino
    with pytest.raises(FileNotFoundError):
        (own.parent / ".uuid/11111111-2222-3333-4444-555555555555").stat()


def test_whole_server_and_single_dataset_can_be_mounted(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    base = server.base_uri.removeprefix("dserver://").split("/")
    with mounted(current_user, f"dserver://{base[0]}", token) as path:
        assert "s3" in os.listdir(path)  # beside what other tests made
        assert (path / "s3" / base[2] / NAME / "data/one-byte").stat().st_size == 1
    with mounted(current_user, uri, token) as path:
        assert sorted(os.listdir(path)) == [".dtool", "README.yml", "data"]
        assert (path / "data/nested/a/b/c/deep.txt").stat().st_size == 300
        assert path.stat().st_ino == 1


def test_uuid_alone_can_be_mounted(
    current_user: Account, fuse: None, uri: str, token: str, original: Path
) -> None:
    _, _, host, *_, uuid = uri.split("/")

    with mounted(current_user, f"dserver://{host}/{uuid}", token) as path:
        assert (path / "README.yml").read_bytes() == (original / "README.yml").read_bytes()


def test_second_mount_reads_from_the_cache_of_the_first(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    relpath = "large/five-blocks.bin"
    cache = current_user.home / "shared-cache"
    for _ in range(2):
        with mounted(current_user, uri, token, "--cache-dir", str(cache)) as path:
            assert (path / "data" / relpath).read_bytes() == content_of(relpath, SIZES[relpath])
    blocks = list(cache.glob("blocks/*/*.blk"))
    assert len(blocks) == 5  # and the last, which is small, in the database
    assert all(block.stat().st_mode & 0o777 == 0o600 for block in blocks)
