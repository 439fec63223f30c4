"""Programs that dserverfs starts: no secret is in their environment, no module from elsewhere."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

from dserverfs.base.child_processes import environment, module_command
from tests.test_structure import MODULES, nodes_of, relative

STARTS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}


def test_environment_has_no_settings_of_ours_and_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DSERVER_TOKEN", "DSERVER_TOKEN_h", "DTOOL_S3_SECRET_ACCESS_KEY_b", "AWS_X"):
        monkeypatch.setenv(name, "secret")

    found = environment(LC_ALL="C")

    assert "secret" not in found.values()
    assert found["PATH"] == os.environ["PATH"]
    assert found["LC_ALL"] == "C"


def test_module_is_run_with_its_arguments(tmp_path: Path) -> None:
    """And whatever its directory has under the names of modules."""
    for module in ("json", "resource", "runpy", "sqlite3", "contextlib", "dserverfs"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('a module of the directory')")

    done = subprocess.run(
        module_command("dserverfs", "--version"),
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
    )

    assert done.stdout.startswith("dserverfs ")
    assert done.stderr == ""


def test_module_gets_its_arguments_as_they_are() -> None:
    done = subprocess.run(
        module_command("dserverfs", "help", "no such page"), capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "no such page" in done.stderr


def wrong_start(path: Path, node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        of, name = node.func.value, node.func.attr
        if isinstance(of, ast.Name) and of.id == "subprocess" and name in STARTS:
            return "env" not in {keyword.arg for keyword in node.keywords}
        return name in ("system", "popen", "create_subprocess_exec")
    return (
        isinstance(node, ast.List)
        and any(isinstance(each, ast.Attribute) and each.attr == "executable" for each in node.elts)
        and path.name != "child_processes.py"
    )


def test_programs_are_started_with_an_environment_that_was_chosen() -> None:
    """And modules of ours by the one command that looks for them nowhere else."""
    wrong = [
        f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        for path in MODULES
        for node in nodes_of(path)
        if wrong_start(path, node)
    ]

    assert wrong == []
