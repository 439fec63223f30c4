"""The benchmark: its arithmetic, and that it runs from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark.measuring import Measurement
from benchmark.report import Results, as_json, as_text, seconds_text, simple_table

SOURCES = Path(__file__).parents[1]


@pytest.fixture
def results() -> Results:
    return Results({"read": "reading"}, "dserverfs", ["rclone", "s3fs"], ["local"])


def test_ratio_is_our_median_to_the_best_median_of_the_peers(results: Results) -> None:
    for column, seconds in {
        "dserverfs": [1.0, 9.0, 2.0],
        "rclone": [4.0, 1.0, 5.0],
        "s3fs": [8.0, 8.0, 8.0],
        "local": [0.1, 0.1, 0.1],
    }.items():
        for each in seconds:
            results.add(column, Measurement("read", each))

    assert results.ratio("read") == 0.5


def test_ratio_is_unknown_without_a_peer(results: Results) -> None:
    results.add("dserverfs", Measurement("read", 1.0))
    results.add("local", Measurement("read", 1.0))

    assert results.ratio("read") is None
    assert as_json(results, {})["rows"][0]["ratio"] is None


def test_a_column_that_failed_once_has_no_value_and_no_part_in_the_ratio(results: Results) -> None:
    for column, seconds in {"dserverfs": 3.0, "rclone": 1.0, "s3fs": 2.0}.items():
        results.add(column, Measurement("read", seconds))
    results.fail("rclone", ["read"], "wrong\nbytes")

    text = as_text(results)

    assert results.ratio("read") == 1.5
    assert "failed" in text
    assert "- rclone, read: failed: wrong bytes" in text


def test_processor_time_and_memory_are_medians_of_what_is_known(results: Results) -> None:
    for cpu, peak in [(1.0, 3 << 20), (2.0, 1 << 20), (4.0, 2 << 20)]:
        results.add("dserverfs", Measurement("read", 1.0, cpu, peak))
    results.add("dserverfs", Measurement("read", 1.0))

    assert results.cpu_seconds("read", "dserverfs") == 2.0
    assert results.peak_mib("read", "dserverfs") == 2.0


def test_simple_table_aligns_numbers_and_marks_an_empty_first_cell() -> None:
    table = simple_table(["", "a"], [["long title", "1.00"], ["short", "-"]])

    assert table.splitlines() == [
        "==========  ====",
        "\\              a",
        "==========  ====",
        "long title  1.00",
        "short          -",
        "==========  ====",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01234, "0.0123"), (0.1, "0.100"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123")],
)
def test_seconds_have_three_digits(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_bench_measures_one_row(fuse: None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["--row", "sequential-cold", "--only", "dserverfs", "--size", "4M", "--repeat", "1"]

    done = subprocess.run(
        [*(sys.executable, "-m", "benchmark", *options), "--directory", tmp_path, "--json", path],
        env={**os.environ, "PYTHONPATH": f"{SOURCES}:{SOURCES / 'scripts'}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (row,) = json.loads(path.read_text())["rows"]
    assert row["row"] == "sequential-cold"
    assert row["columns"]["dserverfs"]["median_seconds"] > 0
    assert row["columns"]["dserverfs"]["median_peak_mib"] > 0
    assert "4 MiB, cold" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_bench_publishes_in_every_way_there_is(fuse: None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["publish", "--size", "1M", "--tar-items", "5", "--repeat", "1"]

    done = subprocess.run(
        [*(sys.executable, "-m", "benchmark", *options), "--directory", tmp_path, "--json", path],
        env={**os.environ, "PYTHONPATH": f"{SOURCES}:{SOURCES / 'scripts'}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for row in json.loads(path.read_text())["rows"]:
        for way in ("dserverfs", "uploader", "sequential"):
            assert row["columns"][way]["median_seconds"] > 0, done.stdout
    assert "times as fast as sequential" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
