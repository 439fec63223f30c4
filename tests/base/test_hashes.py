"""Hashes of local files, and which functions of manifests are known."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dserverfs.base.errors import Cancelled, Unsupported
from dserverfs.base.hashes import (
    MD5,
    PIECE_BYTES,
    digest,
    file_digest,
    hash_file,
    hasher_of,
    known_hasher,
    new_md5,
)

CONTENT = os.urandom(3 * PIECE_BYTES + 1)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(CONTENT)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_file_has_the_hash_of_its_content(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(CONTENT[:size])

    assert file_digest(tmp_path / "file", MD5) == hashlib.md5(CONTENT[:size]).hexdigest()


@pytest.mark.parametrize("offset", [0, 1, PIECE_BYTES, len(CONTENT)])
@pytest.mark.parametrize("length", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 1, None])
def test_part_of_a_file_is_fed_to_each_hasher_and_counted(
    fd: int, offset: int, length: int | None
) -> None:
    one, other = new_md5(), known_hasher("sha256sum_hexdigest")
    told: list[int] = []

    done = hash_file(fd, one, other, offset=offset, length=length, on_piece=told.append)

    part = CONTENT[offset:] if length is None else CONTENT[offset : offset + length]
    assert done == len(part) == sum(told)
    assert one.hexdigest() == hashlib.md5(part).hexdigest()
    assert other.hexdigest() == hashlib.sha256(part).hexdigest()


def test_reading_ends_with_what_the_callback_raises(fd: int) -> None:
    told: list[int] = []

    def stop(count: int) -> None:
        told.append(count)
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        hash_file(fd, new_md5(), on_piece=stop)

    assert told == [PIECE_BYTES]


def test_hash_function_that_is_not_known_is_refused_by_name() -> None:
    assert hasher_of("crc32") is None
    assert digest("crc32", b"") is None
    with pytest.raises(Unsupported, match="crc32"):
        known_hasher("crc32")


@pytest.mark.parametrize(
    ("name", "function"), [("shasum", "sha1"), ("sha1sum_hexdigest", "sha1"), (MD5, "md5")]
)
def test_hash_functions_have_the_names_of_manifests(name: str, function: str) -> None:
    assert digest(name, CONTENT) == hashlib.new(function, CONTENT).hexdigest()
