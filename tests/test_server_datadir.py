from __future__ import annotations

from pathlib import Path

import pytest

from dserverfs.errors import Conflict
from dserverfs.server.datadir import DataDirectory, write_private


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


def test_write_private_replaces_what_a_killed_start_left(tmp_path: Path) -> None:
    (tmp_path / "secret.new").write_text("half")
    (tmp_path / "secret").write_text("old")

    write_private(tmp_path / "secret", "new")

    assert (tmp_path / "secret").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
