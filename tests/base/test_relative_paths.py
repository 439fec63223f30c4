"""Relative paths of a configuration that count from another directory."""

from __future__ import annotations

from dserverfs.base.relative_paths import counted_from


def test_paths_count_from_a_directory_and_all_else_stays() -> None:
    values = {
        "FILE": "a/b",
        "FILE_host:1": "c",
        "FILES": "a/b",
        "HOME": "~/d",
        "DIR": "/e",
        "EMPTY": "",
        "NUMBER": 5,
    }
    names = ("FILE", "HOME", "DIR", "EMPTY", "NUMBER")

    found = counted_from("/w", values, names)

    assert found == {**values, "FILE": "/w/a/b", "FILE_host:1": "/w/c"}
    assert counted_from("", values, names) == values
