"""The rules of who may import whom, and what every file has to keep to."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dserverfs

PACKAGE = Path(dserverfs.__file__).resolve().parent
ROOT = PACKAGE.parent

# A module imports only modules of a level before its own; `server` stands aside.
LEVELS = [
    {"allocator", "clock", "durable_files", "local_files", "mountinfo", "printable", "wire_names"},
    {"errors"},
    {"limits", "retry"},
    {"bounded_sockets", "error_answers", "model"},
    {"item_content"},
    {"disk_tables"},
    {
        "blocks",
        "cache_troubles",
        "cells",
        "connections",
        "control",
        "hashing",
        "json_body",
        "manifest_index",
        "manifest_stream",
        "manifest_tree",
        "mountpoint",
        "owner_lock",
        "processes",
        "read_ahead",
        "upload_urls",
        "verify",
        "versions",
    },
    {
        "staging_state",
        "writers",
        "staged_modes",
        "staged_nodes",
        "staged_layout",
        "cache_disk",
        "cache_watch",
        "hash_ahead",
    },
    {"transport", "settings", "directories", "cache_rows", "loaded_blocks"},
    {"body", "outgoing", "routes", "signed_urls", "manifest_indexing", "cache_space"},
    {"storage", "listings", "signing", "upload_routes", "login"},
    {"resolver", "item_order", "many_gets", "local_dataset"},
    {"cache_opening"},
    {"cache", "kept_answers", "compared_writes", "announcement"},
    {"manifest_shelter"},
    {"manifests", "metadata_writes"},
    {"catalogue", "attempts"},
    {"pieces", "edit_targets", "edit_session"},
    {"parts", "azure", "edited_files"},
    {"cache_care", "cache_writer", "cached_items", "verification", "sender", "local_edits"},
    {"staged_dataset", "prefetch", "fetching", "pending_blocks", "edit_sender"},
    {"run_receiver"},
    {"reader", "staging", "stored_items", "uploader", "frozen_edits"},
    {
        "freeze_schedule",
        "freeze_job",
        "dataset_tree",
        "download",
        "item_reader",
        "sealing",
        "registration",
    },
    {"afterlife", "freezer"},
    {"staged_tree"},
    {"tree", "facts"},
    {"client", "commander"},
    {"operations", "broker", "whole_datasets", "local_check"},
    {"launcher"},
    {"mount"},
    {"daemon"},
    {"demo_datasets"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
OF_SERVER = {"durable_files", "errors", "limits", "model", "printable", "wire_names"}
USERS_OF_SERVER = {"demo", "commands"}
ASYNC = {"operations", "mount"}
MAX_LINES = 500

MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def unit_of(path: Path) -> str:
    """Return the name that LEVELS knows a file by: of the module or sub-package it is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(source: str, path: Path) -> Iterator[str]:
    """Yield the units of dserverfs that a file imports, at whatever place in it."""
    package = ["dserverfs", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "dserverfs" and len(parts) > 1 and is_unit(parts[1]):
                yield parts[1]


def is_unit(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def may_import(unit: str, imported: str) -> bool:
    if unit == imported:
        return True
    if unit == "server":
        return imported in OF_SERVER
    if imported == "server":
        return unit in USERS_OF_SERVER
    return LEVEL_OF[imported] < LEVEL_OF[unit]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_module_imports_only_what_lies_below_it(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        assert not list(imported_units(path.read_text(), path))
        return
    assert unit in LEVEL_OF or unit == "server", f"{unit} has no place in LEVELS"

    wrong = [name for name in imported_units(path.read_text(), path) if not may_import(unit, name)]

    assert not wrong, f"{unit} may not import {', '.join(sorted(set(wrong)))}"


@pytest.mark.parametrize(
    ("source", "units"),
    [
        ("import dserverfs.model", ["model"]),
        ("from dserverfs import errors", ["errors"]),
        ("from dserverfs.model import Item", ["model"]),
        ("from dserverfs import __version__", []),
        ("def f():\n    from dserverfs.server import app", ["server"]),
        ("from ..model import Item", ["model"]),
        ("from . import app", ["server"]),
        ("import os, requests", []),
    ],
)
def test_imports_are_found_wherever_they_are(source: str, units: list[str]) -> None:
    assert list(imported_units(source, PACKAGE / "server" / "app.py")) == units


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_operations_and_mount_are_asynchronous(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))

    found = [n for n in nodes if isinstance(n, (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor))]

    assert not found or unit_of(path) in ASYNC


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_only_operations_answers_with_an_errno(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))

    found = [
        node
        for node in nodes
        if (isinstance(node, ast.Attribute) and node.attr == "FUSEError")
        or (isinstance(node, ast.alias) and node.name == "FUSEError")
    ]

    assert not found or unit_of(path) == "operations"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MAX_LINES


def test_importing_the_package_imports_nothing_heavy() -> None:
    before_and_after = (
        "import sys; before = set(sys.modules); import dserverfs; "
        "print(*sorted(set(sys.modules) - before))"
    )

    imported = subprocess.run(
        [sys.executable, "-c", before_and_after], capture_output=True, text=True, check=True
    ).stdout.split()

    assert imported == ["dserverfs"]
