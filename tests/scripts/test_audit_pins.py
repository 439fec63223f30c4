"""`scripts/audit-pins`: what the index says of the pins, and what is said without it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit-pins"


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # no file beside the script
    loader = importlib.machinery.SourceFileLoader("audit_pins", str(SCRIPT))
    spec = importlib.util.spec_from_loader("audit_pins", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "audit_pins", module)
    loader.exec_module(module)
    return module


def test_pins_are_all_those_of_the_file(audit: ModuleType) -> None:
    lines = audit.PINS.read_text().splitlines()

    pins = audit.pins_of(audit.PINS.read_text())

    assert len(pins) == sum("==" in line for line in lines) > 50
    assert ("Flask", "2.3.3") in audit.pins_of("# Flask==1\nFlask==2.3.3 ; python_version > '3'\n")


BAD = {
    "vulnerabilities": [
        {"id": "PYSEC-1", "aliases": ["CVE-2026-1", "GHSA-x"], "fixed_in": ["1.2"]},
        {"id": "PYSEC-2", "aliases": [], "fixed_in": []},
        {"id": "PYSEC-3", "withdrawn": "2026-01-01T00:00:00Z", "fixed_in": ["9"]},
    ],
    "urls": [{"yanked": True}],
}


def test_vulnerable_withdrawn_and_old_pins_are_told(audit: ModuleType) -> None:
    bad = audit.finding_of(audit.Pin("bad", "1.1"), BAD, {"info": {"version": "1.2"}})
    good = audit.finding_of(audit.Pin("good", "3"), {"urls": []}, {"info": {"version": "3"}})

    assert audit.report([bad, good]) == [
        "VULNERABLE bad 1.1: CVE-2026-1: fixed in 1.2",
        "VULNERABLE bad 1.1: PYSEC-2: fixed in no version",
        "withdrawn  bad 1.1",
        "old        bad 1.1, newest is 1.2",
        "audit-pins: 2 pins, 1 with a known vulnerability",
    ]


@pytest.mark.parametrize(("answer", "status"), [(BAD, 1), ({"vulnerabilities": []}, 0)])
def test_status_says_whether_one_is_vulnerable(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: Any, status: int
) -> None:
    monkeypatch.setattr(audit, "_get", lambda path: json.loads(json.dumps(answer)))

    assert audit.main() == status


def test_without_a_network_it_says_so_in_one_line(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "INDEX", "http://127.0.0.1:9")

    assert audit.main() == 2

    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "cannot be asked: [Errno 111] Connection refused; nothing was compared" in said
