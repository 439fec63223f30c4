"""The runner of `scripts/soak`: what turns say, how they end, and the table of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.soak import __main__ as program
from tests.soak import running, turn
from tests.soak.running import Result, Share
from tests.soak.turns import Part, Turn

# A turn that does what its name says.
_TURN = """
import json, signal, sys
name, seed, seconds = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended in an orderly way"))
print("at work", file=sys.stderr, flush=True)
if name == "fails":
    sys.exit("what is wrong")
if name == "lasts":
    signal.pause()
print(json.dumps({"seed": int(seed), "seconds": int(seconds)}))
"""


def nothing(_: Turn) -> Mapping[str, int]:
    return {}


def share(name: str, seconds: float = 7.0) -> Share:
    return Share(Part(name, "a part", nothing), seconds)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(running, "TURN", (sys.executable, "-c", _TURN))
    return []


def test_results_are_those_of_the_turns(said: list[str]) -> None:
    shares = [share("one"), share("fails"), share("two")]

    found = list(running.run(shares, 5, 2, lambda part, line: said.append(f"{part}: {line}")))

    by_name = {result.part: result for result in found}
    assert by_name["one"].figures == by_name["two"].figures == {"seed": 5, "seconds": 7}
    assert by_name["fails"].error == "at work\nwhat is wrong"
    assert "one: at work" in said
    assert "fails: what is wrong" in said
    assert "fails: again: scripts/soak --part fails --seed 5" in said


def test_turns_are_told_to_end_and_waited_for(said: list[str]) -> None:
    def say(part: str, line: str) -> None:
        said.append(f"{part}: {line}")
        if line == "at work":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(running.run([share("lasts")], 1, 1, say))

    assert said[-2:] == ["lasts: at work", "lasts: ended in an orderly way"]


def test_turn_that_hangs_is_an_error(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LATE_S", 0.0)

    (result,) = running.run([share("lasts", 0.0)], 1, 1, lambda part, line: None)

    assert "hangs" in result.error


def test_time_is_shared_by_weight() -> None:
    parts = [Part("a", "", nothing), Part("b", "", nothing, 3.0), Part("c", "", nothing, 2.0, True)]

    beside, alone = program.shares(parts, 40, 2)

    # Those of 1 and 3 beside each other take as long as the other, of 2.
    assert [(each.part.name, each.seconds) for each in beside + alone] == [
        ("a", 10.0),
        ("b", 30.0),
        ("c", 20.0),
    ]
    ((only,), _) = program.shares(parts[:1], 40, 2)
    assert only.seconds == 40


def test_summary_is_a_table_for_the_page() -> None:
    figures = {f"figures of kind {number}": number * 1000 for number in range(9)}

    lines = program.summary(
        [Result("second", 1, 1234, figures, ""), Result("first", 1, 5, {}, "hangs")]
    ).splitlines()

    assert lines[0] == lines[2] == lines[-1]
    assert lines[3] == "first        5 FAILED"
    assert lines[4].startswith("second   1,234 0 figures of kind 0, 1,000 figures of kind 1")
    assert all(len(line) <= 100 for line in lines)


def test_logs_of_a_turn_that_failed_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "turn/home").mkdir(parents=True)
    (tmp_path / "turn/home/mount.log").write_text("what happened\n")
    (tmp_path / "turn/empty.log").touch()
    os.truncate(tmp_path / "turn/empty.log", 0)

    turn.keep_logs(tmp_path / "turn", tmp_path / "kept")

    assert [path.name for path in (tmp_path / "kept").rglob("*.log")] == ["mount.log"]
    assert (tmp_path / "kept/home/mount.log").read_text() == "what happened\n"
    assert str(tmp_path / "kept") in capsys.readouterr().err
