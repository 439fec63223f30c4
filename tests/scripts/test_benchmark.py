"""The benchmark's arithmetic: medians and ratios, tables, JSON and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark import options
from benchmark.measuring import Measurement
from benchmark.plan import ENDED_EARLY, Keeper, load
from benchmark.report import (
    Results,
    as_json,
    as_text,
    from_json,
    merged,
    seconds_text,
    simple_table,
)


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


def test_ours_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="compared with itself"):
        Results({"row": "a row"}, "ours", ["ours", "other"], [])


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


def filled(titles: dict[str, str], seconds: float) -> Results:
    """Return results with two columns of these rows, in all the same."""
    results = Results(titles, "dserverfs", ["rclone"], ["local"], notes=[f"took {seconds}"])
    for row in titles:
        results.add("dserverfs", Measurement(row, seconds, seconds / 2, 1 << 20))
        results.add("rclone", Measurement(row, seconds * 2))
    return results


def test_what_json_keeps_makes_the_same_tables_again(results: Results) -> None:
    for seconds in (1.0, 2.0, 3.0):
        results.add("dserverfs", Measurement("read", seconds, seconds / 2, 5 << 20))
        results.add("rclone", Measurement("read", seconds * 4))
    results.fail("s3fs", ["read"], "wrong bytes")
    results.note("on a machine")

    again = from_json(json.loads(json.dumps(as_json(results, {}))))

    assert as_text(again) == as_text(results)
    assert again == results


def test_rows_of_which_nothing_is_known_are_not_loaded(results: Results) -> None:
    results.titles = {"read": "reading", "fail": "failing", "never": "never reached"}
    results.add("dserverfs", Measurement("read", 1.0))
    results.fail("dserverfs", ["fail"], "no such file")

    again = from_json(json.loads(json.dumps(as_json(results, {}))))

    assert list(again.titles) == ["read", "fail"]


def test_rows_of_later_files_replace_earlier_ones_whole_and_in_order() -> None:
    first = filled({"b": "b of 1", "c": "c of 1"}, 1.0)
    first.fail("dserverfs", ["c"], "broken")
    second = filled({"c": "c of 2", "a": "a of 2"}, 3.0)

    both = merged([first, second], ["a", "b", "c"])

    assert list(both.titles.items()) == [("a", "a of 2"), ("b", "b of 1"), ("c", "c of 2")]
    assert [both.seconds(row, "dserverfs") for row in "abc"] == [3.0, 1.0, 3.0]
    assert [both.seconds(row, "rclone") for row in "abc"] == [6.0, 2.0, 6.0]
    assert both.failed == {}
    assert both.notes == ["took 1.0", "took 3.0"]


def test_a_later_failure_replaces_an_earlier_value() -> None:
    first, second = filled({"a": "a"}, 1.0), filled({"a": "a"}, 2.0)
    second.fail("dserverfs", ["a"], "broken")

    both = merged([first, second], ["a"])

    assert both.seconds("a", "dserverfs") is None
    assert "- dserverfs, a: failed: broken" in as_text(both)


def test_tables_of_other_columns_are_not_merged(results: Results) -> None:
    with pytest.raises(ValueError, match="do not compare the same"):
        merged([results, filled({"a": "a"}, 1.0)], ["a"])


def test_a_file_says_if_its_run_ended_early(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    results.add("dserverfs", Measurement("read", 1.0))
    keeper = Keeper([path])

    keeper.keep(results, {})
    early = load(path)
    keeper.keep_all(results, {"sizes": {"large": 1}})
    whole = load(path)

    assert early.results.notes == [ENDED_EARLY]
    assert whole.results.notes == []
    assert whole.about == {"sizes": {"large": 1}}
    assert [each.name for each in tmp_path.iterdir()] == ["kept.json"]


def test_a_file_that_cannot_be_replaced_leaves_none_beside_it(
    results: Results, tmp_path: Path
) -> None:
    path = tmp_path / "kept.json"
    path.mkdir()

    with pytest.raises(IsADirectoryError):
        Keeper([path]).keep(results, {})

    assert [each.name for each in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [], "columns": {}}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)

    with pytest.raises(ValueError, match="no results of scripts/bench"):
        load(path)


@pytest.mark.parametrize("what", ["read", "publish"])
def test_defaults_are_the_sizes_of_the_targets(what: str) -> None:
    sizes = options.plan_of(options.parse([what])).sizes

    assert (sizes.large_bytes, sizes.small_items) == (1 << 30, 5000)


@pytest.mark.parametrize(
    "argv",
    [
        ["--row", "publish-large"],
        ["publish", "--row", "tar-cold"],
        ["publish", "--only", "weed"],
        ["--from", "x.json", "--row", "tar-cold"],
        ["--json", "/nowhere/at/all.json"],
    ],
)
def test_options_without_meaning_are_refused_before_anything_is_measured(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(argv)

    assert ended.value.code == 2
