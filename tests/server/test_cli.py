from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dserverfs import __version__
from dserverfs.cli.main import main


def test_a_missing_extra_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("dserverfs.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "boto3", None)

    status = main(["serve", "--data", str(tmp_path)])

    assert status == 1
    expected = "dserverfs: boto3 is not installed; run: pip install 'dserverfs[server]'\n"
    assert capsys.readouterr().err == expected


def test_a_mistake_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "70000"]) == 1

    assert capsys.readouterr().err == "dserverfs: --port 70000: not between 0 and 65535\n"


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"dserverfs {__version__}\n"
