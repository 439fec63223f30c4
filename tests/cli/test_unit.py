"""`dserverfs unit`: each unit is one that systemd understands, and runs this program."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dserverfs.cli import unit
from dserverfs.cli.main import main

NAMES = sorted(path.stem for path in unit.DIRECTORY.iterdir())


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["unit", name]) == 0
    return capsys.readouterr().out


def place_of(text: str) -> Path:
    """Return the file that a unit says it is to be."""
    return Path(re.split("[ :,\n]", text)[1])


def test_all_are_listed_with_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit"]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == NAMES
    assert len(NAMES) == 7
    for name, place in lines:
        assert place == str(place_of(printed(name, capsys)))
        assert "/systemd/" in place


@pytest.mark.parametrize("name", NAMES)
def test_unit_runs_this_program(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(name, capsys)

    assert "@" not in re.sub("dserverfs@", "", text)
    for key, command in re.findall("^(ExecStart|ExecStop)=-?(.*)", text, re.MULTILINE):
        words = re.sub(r"\$\{?\w+\}?", "x", command).split()
        if name == "gunicorn":
            assert words[:3] == [f'"{sys.executable}"', "-m", "gunicorn"]
            assert find_spec(words[-1].removeprefix("python:")) is not None
            continue
        assert words[:3] == [f'"{sys.executable}"', "-m", "dserverfs"], key
        with pytest.raises(SystemExit) as ended:  # after the arguments were understood
            main([*words[3:], "--help"])
        assert ended.value.code == 0


def test_program_of_a_unit_is_the_one_that_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "100% \\mine" / "dserverfs"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "unit"])

    assert f'ExecStart="{tmp_path}/100%% \\\\mine/dserverfs" mount' in printed("user", capsys)


def test_unknown_unit_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unit", "nothing"]) == 1

    assert ", ".join(NAMES) in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        text = printed(name, capsys)
        place = place_of(text)
        path = tmp_path / place.parent.name / place.name.replace("@", "@lab")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    for kind in ("system", "user"):
        units = [str(path) for path in (tmp_path / kind).iterdir()]
        assert units
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", f"--{kind}", *units],
            capture_output=True,
            text=True,
            timeout=60,
            env={"SYSTEMD_UNIT_PATH": f"{tmp_path / kind}:", "XDG_RUNTIME_DIR": str(tmp_path)},
        )
        said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "lab" in line]
        assert said == [], done.stderr
        if done.returncode != 0:  # as for ordinary users of some containers
            pytest.skip(f"systemd-analyze does not work here: {done.stderr}")
