"""Which names are excluded: leavings of programs, and never what a scientist calls a file."""

from __future__ import annotations

import pytest

from dserverfs.base.excluded import DEFAULT, NOTHING, Excluded

LEAVINGS = [
    ".DS_Store",
    "._results.csv",
    "Thumbs.db",
    "desktop.ini",
    ".Trash-1000",
    ".ipynb_checkpoints",
    "__pycache__",
    ".notes.txt.swp",
    ".notes.txt.swo",
    ".#notes.txt",
    ".~lock.table.ods#",
    ".nfs00000000004c12f500000003",
    ".fuse_hidden0000000300000001",
]
# Each is near to one of those.
FILES = [
    "DS_Store",
    "_results.csv",
    "__init__.py",
    "swap.swp",
    "soil.swap",
    ".swp",
    ".hidden",
    ".gitignore",
    "#1",
    "notes~",
    "notes.bak",
    ".nfsrc",
    "Trash-1000",
    "ipynb_checkpoints",
    "x.DS_Store",
    "x\n.DS_Store",
    "..Thumbs.db",
]


@pytest.mark.parametrize("name", LEAVINGS)
def test_leaving_of_a_program_is_excluded(name: str) -> None:
    assert name in Excluded(DEFAULT)
    assert name not in NOTHING


@pytest.mark.parametrize("name", FILES)
def test_file_of_a_user_is_not_excluded(name: str) -> None:
    assert name not in Excluded(DEFAULT)


@pytest.mark.parametrize(
    ("pattern", "name", "is_excluded"),
    [
        ("*.tmp", "a.tmp", True),
        ("*.tmp", "a.TMP", False),
        ("*.tmp", ".tmp", True),
        ("a", "ab", False),
        ("[ab]?", "bx", True),
        ("[", "[", True),
        ("*", "any\nthing", True),
    ],
)
def test_patterns_are_those_of_a_shell(pattern: str, name: str, is_excluded: bool) -> None:
    assert (name in Excluded(["other", pattern])) is is_excluded
