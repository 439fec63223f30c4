"""The log of a mount: its name, its mode, and what becomes of one that is full."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dserverfs.cli import log_file

CODE = """
import logging, os, sys
from pathlib import Path
from dserverfs.cli import log_file
os.umask(int(sys.argv[2], 8))
log_file.MAX_LOG_BYTES = 1000
log_file.log_to(Path(sys.argv[1]), "info")
for number in range(40):
    logging.info("line %d", number)
"""


@pytest.mark.parametrize("umask", ["000", "022", "077"])
@pytest.mark.parametrize("mode", [None, 0o644])
def test_log_and_the_one_before_it_are_their_owners_alone(
    tmp_path: Path, umask: str, mode: int | None
) -> None:
    path = tmp_path / "logs/log"
    if mode is not None:  # one of an earlier version, or that another program made
        path.parent.mkdir()
        path.touch(mode)
        path.chmod(mode)

    subprocess.run([sys.executable, "-c", CODE, path, umask], check=True)

    assert sorted(os.listdir(path.parent)) == ["log", "log.1"]
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
        assert each.stat().st_size <= 1000
    assert path.read_text().endswith(": line 39\n")


@pytest.mark.parametrize("path", ["/a/b", "/" + "a" * 300, "/" + "数" * 100, "/\udcff"])
def test_name_is_one_of_a_file(path: str, tmp_path: Path) -> None:
    name = log_file.name_of(Path(path))

    (tmp_path / f"{name}.1").touch()
    assert name.startswith("mount")
    assert name.endswith(".log")
    assert log_file.name_of(Path(f"/x{path}")) != name


def test_urls_of_the_transport_are_never_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("urllib3")
    monkeypatch.setattr(logger, "level", logging.NOTSET)

    log_file.log_to(None, "debug")

    assert not logger.isEnabledFor(logging.WARNING)
