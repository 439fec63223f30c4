"""The rules of who may import whom, and what every file has to keep to."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dserverfs

PACKAGE = Path(dserverfs.__file__).resolve().parent
ROOT = PACKAGE.parent

# Which rooms a room imports. Within one, sub-rooms import those named before them, and the
# room's own modules all of its sub-rooms.
MAY_IMPORT = {
    "base": "",
    "remote": "base",
    "reading": "base remote",
    "catalogue": "base remote",
    "writing": "base remote reading catalogue",
    "tree": "base catalogue writing",
    "settings": "base remote",
    "client": "base remote reading catalogue writing settings",
    "mount": "base remote reading catalogue writing tree settings client",
    "broker": "base reading catalogue writing settings client",
    "python": "base reading catalogue writing settings client broker",
    "server": "base settings",
    "cli": "base remote reading writing tree settings client mount server",
    "__main__": "base cli",
}
SUB_ROOMS = {
    "mount": ["channel"],
    "reading": ["cache"],
    "writing": ["staging", "upload", "edits"],
    "server": ["store", "database", "routes", "pages"],
}
# What a room shows the others; of base that is all.
SHOWN = {
    "remote": "addresses answers api contact dserver_http listings login manifest_parsing many_gets"
    " metadata_api objects puts routes server_index signed_urls signing site_cache"
    " token_renewal tokens trust upload_api upload_urls",
    "reading": "block_reader hash_objects hash_overlays hot_blocks item_order open_item ranges"
    " small_items stored_items item_files traced_items cache.adopting cache.block_cache"
    " cache.blocks cache.maintenance cache.pinning",
    "catalogue": "catalogue items manifest_index names offline refreshed",
    "writing": "freeze_job freezer registry staging.area staging.dataset staging.file_hashes"
    " staging.frozen_elsewhere staging.left_over staging.refused_files staging.staged_files"
    " staging.states staging.survey staging.used_directories upload.uploader edits.edits"
    " edits.editable edits.journal edits.local_file edits.view",
    "tree": "attributes description filesystem frozen_dataset listing mount_tree number_journal"
    " open_files refusals slots steps upper_directories",
    "mount": "channel.messages channel.succession control daemon given_device kept_errors"
    " launcher mountpoint",
    "broker": "proto",
    "python": "api",
    "server": "addresses datadir management serve store.migration store.settings store.stores",
    "cli": "main",
}
ASYNC = {"mount"}
ERRNO = "mount.errnos"
MAX_LINES = 500
TIMED = {"simulation", "soak"}  # tests whose clocks are simulated, or that promise times

MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def name_of(path: Path) -> str:
    """Return a module's name below the package, a package's without `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


@functools.cache
def source_of(path: Path) -> str:
    return path.read_text()


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source_of(path))))


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    return frozenset(imported(source_of(path)))


def room_of(name: str) -> str:
    return name.partition(".")[0]


def sub_room_of(name: str) -> str:
    """Return the sub-room that a module is in; empty if it is in the room itself."""
    room, *below = name.split(".")
    return below[0] if below and below[0] in SUB_ROOMS.get(room, ()) else ""


def imported(source: str) -> Iterator[str]:
    """Yield the modules of dserverfs that a file imports, at whatever place in it."""
    for node in ast.walk(ast.parse(source)):
        for name in names_in(node):
            if ours := module_of(name):
                yield ours


def imported_first(source: str) -> Iterator[str]:
    """Yield what a file imports when it is imported: modules of ours, packages of others."""
    for node in ast.parse(source).body:
        for name in names_in(node):
            yield module_of(name) or name.partition(".")[0]


def names_in(node: ast.AST) -> list[str]:
    """Return what an import statement names; nothing for another statement."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def module_of(name: str) -> str:
    """Return the module of dserverfs that has what is named; empty if it is of others."""
    name = name.removeprefix("dserverfs.") if name.startswith("dserverfs.") else ""
    while name and name not in NAMES:
        name = name.rpartition(".")[0]
    return name


def may_import(name: str, other: str) -> bool:
    room, sub_room = room_of(name), sub_room_of(name)
    if room_of(other) != room:
        return room_of(other) in MAY_IMPORT[room].split()
    if not sub_room or sub_room == sub_room_of(other):
        return True
    order = SUB_ROOMS[room]
    return sub_room_of(other) in order[: order.index(sub_room)]


def is_shown(name: str, other: str) -> bool:
    """Return whether one module may know another of its own room, or one that this room shows."""
    room, _, rest = other.partition(".")
    return room in (room_of(name), "base") or not rest or rest in SHOWN[room].split()


def test_rooms_import_only_the_rooms_before_them_and_what_they_show() -> None:
    names = {name_of(path): imports_of(path) for path in MODULES}
    # When it is first used, as the test of what is heavy shows.
    assert names.pop("__init__") == {"python.api"}
    assert {room_of(name) for name in names} <= MAY_IMPORT.keys(), "one has no place in the house"

    pairs = [(name, other) for name, others in names.items() for other in others]
    assert [pair for pair in pairs if not may_import(*pair)] == []
    assert [pair for pair in pairs if not is_shown(*pair)] == []


def test_a_room_shows_only_what_another_asks_for() -> None:
    asked = {
        other
        for path in MODULES
        for other in imports_of(path)
        if room_of(other) != room_of(name_of(path)) and "." in other
    }

    shown = {f"{room}.{name}" for room, names in SHOWN.items() for name in names.split()}

    assert shown == {name for name in asked if room_of(name) != "base"}


def test_one_function_alone_imports_what_needs_the_packages_of_mounts() -> None:
    """Everything else works where pyfuse3 and trio are not installed."""
    first = {name_of(path): set(imported_first(source_of(path))) for path in MODULES}

    needs = {name for name, others in first.items() if others & {"pyfuse3", "trio"}}
    while more := {name for name, others in first.items() if others & needs} - needs:
        needs |= more
    users = {name_of(path) for path in MODULES if imports_of(path) & needs}

    assert {room_of(name) for name in needs} == {"mount"}
    assert users - needs == {"mount.daemon"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = {name_of(path): imports_of(path) for path in MODULES}

    while leaves := {name for name, others in imports.items() if not others & imports.keys()}:
        imports = {name: others for name, others in imports.items() if name not in leaves}

    assert imports == {}


@pytest.mark.parametrize(
    ("name", "other", "is_right"),
    [
        ("remote.api", "base.errors", True),
        ("base.errors", "remote.api", False),
        ("reading.block_reader", "reading.cache.blocks", True),
        ("reading.cache.blocks", "reading.block_reader", False),
        ("writing.edits.edits", "writing.staging.area", True),
        ("writing.staging.area", "writing.edits.edits", False),
        ("writing.upload.uploader", "writing.freezer", False),
        ("server.app", "client", False),
        ("cli.main", "broker.session", False),
    ],
)
def test_imports_go_one_way(name: str, other: str, is_right: bool) -> None:
    assert may_import(name, other) is is_right


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import dserverfs.base.model", ["base.model"]),
        ("from dserverfs.base import errors", ["base.errors"]),
        ("from dserverfs.base.model import Item", ["base.model"]),
        ("from dserverfs import __version__", []),
        ("def f():\n    from dserverfs.server import app", ["server.app"]),
        ("import os, requests", []),
    ],
)
def test_imports_are_found_wherever_they_are(source: str, names: list[str]) -> None:
    assert list(imported(source)) == names


def test_only_the_mount_is_asynchronous() -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor)

    found = {name_of(path) for path in MODULES if any(isinstance(n, kinds) for n in nodes_of(path))}

    assert {room_of(name) for name in found} == ASYNC, found


def test_only_one_table_answers_with_an_errno() -> None:
    def names_the_error(node: ast.AST) -> bool:
        return (isinstance(node, ast.Attribute) and node.attr == "FUSEError") or (
            isinstance(node, ast.alias) and node.name == "FUSEError"
        )

    found = {name_of(path) for path in MODULES if any(map(names_the_error, nodes_of(path)))}

    assert found == {ERRNO}


def test_files_can_be_read_in_one_sitting() -> None:
    lines = {relative(path): source_of(path).count("\n") for path in FILES}

    assert {file: count for file, count in lines.items() if count >= MAX_LINES} == {}


def test_no_test_fails_because_something_took_a_few_seconds() -> None:
    """A wait is LATE_S long; shorter than a second are those in which nothing may happen."""
    wait = re.compile(
        r"(?:\.(?:wait|result|join|exception)\(|\btimeout(?:_s)?=)(\d+(?:\.\d+)?)\b(?! \*)|"
        r"monotonic\(\) \+ (\d+)\b(?! \*)"
    )

    found = [
        f"{relative(path)}: {match.group()}"
        for path in FILES
        if path.is_relative_to(ROOT / "tests") and path.parts[-2] not in TIMED
        for match in wait.finditer(source_of(path))
        if 1 <= float(match.group(1) or match.group(2)) < 30
    ]

    assert found == []


# They find nothing, too, in a directory that cannot be read.
FORGIVING = ("glob", "rglob", "walk")


def test_what_users_wrote_is_not_listed_by_what_forgives_errors() -> None:
    """`files_below` and `named` of base/local_files raise what the disk says."""
    called = [
        f"{relative(path)}:{call.lineno}"
        for path in MODULES
        if room_of(name_of(path)) in ("broker", "tree", "writing")
        for call in nodes_of(path)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in FORGIVING
        and not {"found", "self"} & set(names_of_owner(call.func))
        and "onerror" not in {keyword.arg for keyword in call.keywords}
    ]

    assert called == []


def names_of_owner(attribute: ast.Attribute) -> list[str]:
    """Return the name that a method is called on, if it is one."""
    return [attribute.value.id] if isinstance(attribute.value, ast.Name) else []


def test_importing_the_package_imports_nothing_heavy() -> None:
    before_and_after = (
        "import sys; before = set(sys.modules); import dserverfs; "
        "print(*sorted(set(sys.modules) - before))"
    )

    imported = subprocess.run(
        [sys.executable, "-c", before_and_after], capture_output=True, text=True, check=True
    ).stdout.split()

    assert imported == ["dserverfs"]
