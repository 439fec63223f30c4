"""The benchmark from end to end: what it measures, keeps and leaves, also when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark.lab import KEEP_CACHES

SOURCES = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{SOURCES}:{SOURCES / 'scripts'}",
    KEEP_CACHES: "yes",
}
COMMAND = (sys.executable, "-m", "benchmark")


def bench(*options: str | Path, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def rows_of(path: Path) -> dict[str, Any]:
    return {row["row"]: row["columns"] for row in json.loads(path.read_text())["rows"]}


def test_bench_has_programs_read_without_a_mount(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["--row", "files-cold", "--row", "files-again", "--only", "dserverfs"]
    options += ["--tar-items", "20"]

    done = bench("programs", *options, "--repeat", "1", "--directory", tmp_path, "--json", path)

    assert done.returncode == 0, done.stderr
    found = rows_of(path)
    assert list(found) == ["files-cold", "files-again"]
    assert all(columns["dserverfs"]["median_seconds"] > 0 for columns in found.values())
    assert "20 x 4 KiB, cold" in done.stdout
    ((to_server, to_store),) = found["files-cold"]["dserverfs"]["requests"]
    assert 0 < to_server < 20 <= to_store <= 25
    assert found["files-again"]["dserverfs"]["requests"] == [[0, 0]]
    assert "to the server + to the store" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_bench_reads_compared_otherwise_beside_those_who_never_compare(
    fuse: None, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    options = ["--size", "4M", "--repeat", "1", "--only", "dserverfs", "--only", "local"]
    names = [f"sequential-{name}" for name in ("cold", "off", "foreign", "certain")]
    rows = [word for name in names for word in ("--row", name)]

    done = bench(*options, *rows, "--directory", tmp_path, "--json", path)

    assert done.returncode == 0, done.stderr
    found = rows_of(path)
    assert list(found) == names
    seconds = {
        (row, column): found[row][column]["seconds"]
        for row in found
        for column in ("dserverfs", "local")
    }
    assert all(len(each) == 1 for each in seconds.values())
    assert seconds["sequential-off", "local"] == seconds["sequential-cold", "local"]
    assert seconds["sequential-off", "dserverfs"] != seconds["sequential-cold", "dserverfs"]
    assert seconds["sequential-foreign", "local"] == seconds["sequential-cold", "local"]
    assert seconds["sequential-certain", "local"] > seconds["sequential-cold", "local"]
    assert seconds["sequential-certain", "dserverfs"] == seconds["sequential-foreign", "dserverfs"]


def test_bench_has_processes_read_items_as_a_training_job_does(fuse: None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["channel", "--image-items", "20", "--repeat", "1", "--row", "training-again"]
    columns = ("dserverfs", "no-channel", "local")

    done = bench(
        *options, *(f"--only={name}" for name in columns), "--directory", tmp_path, "--json", path
    )

    assert done.returncode == 0, done.stderr
    found = rows_of(path)
    assert list(found) == ["training-again"]
    assert all(len(found["training-again"][name]["seconds"]) == 1 for name in columns)
    assert "8 processes, 20 x 100 KiB shuffled, again" in done.stdout


def test_bench_measures_one_row_of_a_distant_store_without_the_other(
    fuse: None, tmp_path: Path
) -> None:
    options = ["--row", "distant-20-large", "--only", "dserverfs", "--repeat", "1"]

    done = bench(*options, "--distant-size", "2M", "--directory", tmp_path)

    assert done.returncode == 0, done.stderr
    assert "2 MiB, cold, 20 ms away" in done.stdout
    assert "distant-large" in done.stderr
    assert "distant-small" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_bench_that_is_interrupted_shows_and_keeps_what_it_has(
    fuse: None, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "result.json"
    options = ["--only", "dserverfs", "--size", "1M", "--repeat", "1000"]

    with subprocess.Popen(
        [*COMMAND, *options, "--row", "sequential-cold", "--directory", tmp_path, "--json", path],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            seen = ""
            while "sequential-cold 3:" not in seen:
                line = process.stderr.readline()
                assert line, seen
                seen += line
            process.send_signal(number)
            said, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "1 MiB, cold" in said
    assert "the run ended before all was measured" in said
    kept = json.loads(path.read_text())
    assert kept["complete"] is False
    assert 2 <= len(kept["rows"][0]["columns"]["dserverfs"]["seconds"]) < 1000
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
    assert bench("--from", path).stdout == said


def test_bench_measures_rows_singly_and_makes_one_table_of_them(fuse: None, tmp_path: Path) -> None:
    options = ["--only", "dserverfs", "--size", "1M", "--list-items", "3", "--repeat", "1"]
    files = {row: tmp_path / f"{row}.json" for row in ("list-first", "sequential-cold")}
    for row, path in files.items():
        done = bench(*options, "--row", row, "--directory", tmp_path, "--json", path)
        assert done.returncode == 0, done.stderr
        assert list(rows_of(path)) == [row]
        assert rows_of(path)[row]["dserverfs"]["median_seconds"] > 0
    assert rows_of(files["sequential-cold"])["sequential-cold"]["dserverfs"]["median_peak_mib"] > 0
    assert "1 MiB, cold" in done.stdout
    assert sorted(each.name for each in tmp_path.iterdir()) == [f"{row}.json" for row in files]
    both, picture = tmp_path / "both.json", tmp_path / "both.png"

    shown = bench(
        *("--from", files["list-first"], "--from", files["sequential-cold"]),
        *("--json", both, "--plot", picture),
    )

    assert shown.returncode == 0, shown.stderr
    assert list(rows_of(both)) == ["sequential-cold", "list-first"]
    ratios = [row["ratio"] for row in json.loads(both.read_text())["rows"]]
    assert ratios == [None, None]  # nothing was measured beside it
    for row, path in files.items():
        assert rows_of(both)[row] == rows_of(path)[row]
    assert "1 MiB, cold" in shown.stdout
    assert "ls -lR of 3, first" in shown.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_says_in_one_line_that_it_cannot_show_a_file(tmp_path: Path) -> None:
    done = bench("--from", tmp_path / "missing.json")

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "missing.json" in done.stderr


def test_bench_publishes_in_every_way_there_is(fuse: None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["publish", "--size", "1M", "--tar-items", "5", "--repeat", "1"]

    done = bench(*options, "--directory", tmp_path, "--json", path)

    assert done.returncode == 0, done.stderr
    assert list(rows_of(path)) == ["publish-large", "publish-small"]
    for columns in rows_of(path).values():
        for way in ("dserverfs", "uploader", "sequential"):  # the others may not be installed
            assert columns[way]["median_seconds"] > 0, done.stdout
    assert "times as fast as sequential" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_bench_publishes_one_row_in_one_way(fuse: None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ["publish", "--row", "publish-small", "--only", "uploader", "--tar-items", "3"]

    done = bench(*options, "--repeat", "1", "--directory", tmp_path, "--json", path)

    assert done.returncode == 0, done.stderr
    ((row, columns),) = rows_of(path).items()
    assert row == "publish-small"
    assert columns["uploader"]["median_seconds"] > 0
    assert not columns["sequential"]["seconds"]
