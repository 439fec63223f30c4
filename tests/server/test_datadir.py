from __future__ import annotations

import os
from pathlib import Path

import pytest

from dserverfs.base.durable_files import written_beside
from dserverfs.base.errors import Conflict
from dserverfs.server.datadir import DataDirectory


def test_a_directory_is_made_private_and_is_ours_again(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "b")

    with directory.locked():
        key = directory.private_key_pem()
    with directory.locked():
        assert directory.private_key_pem() == key

    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "jwt_private.pem").stat().st_mode & 0o777 == 0o600


def test_a_directory_is_locked_once(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path).locked(),
        pytest.raises(Conflict),
        DataDirectory(tmp_path).locked(),
    ):
        pass


@pytest.mark.parametrize("killed_in", ["version", "jwt_private.pem"])
def test_start_carries_on_after_one_that_was_killed_while_it_wrote(
    tmp_path: Path, killed_in: str
) -> None:
    if killed_in != "version":
        with DataDirectory(tmp_path).locked():
            pass
    with written_beside(tmp_path / killed_in) as (file, scratch):
        file.write(b"half")
        os.link(scratch, half := tmp_path / f"{killed_in}.1-1.new")

    with DataDirectory(tmp_path).locked():
        assert "PRIVATE KEY" in DataDirectory(tmp_path).private_key_pem()

    assert not half.exists()
