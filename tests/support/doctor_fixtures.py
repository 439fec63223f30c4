"""The fixture for tests of `dserverfs doctor`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dserverfs.base import mountinfo
from tests.support.doctors import Doctor


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    for name in [name for name in os.environ if name.startswith(("DSERVER_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    doctor = Doctor(monkeypatch, capsys)
    every = mountinfo.dserverfs_mounts  # those of other tests' too
    monkeypatch.setattr(
        mountinfo,
        "dserverfs_mounts",
        lambda: [
            *(mount for mount in every() if Path(mount.path) in doctor.mounts),
            *doctor.others,
        ],
    )
    return doctor
