"""The rows in their order: which scenario measures each, and what it is called."""

from __future__ import annotations

from benchmark import distant_rows, many_rows, rows, training
from benchmark.lab import Sizes
from benchmark.rows import MIB, WARM_READS_PER_COLD, Scenario

SCENARIOS = (
    Scenario(
        (*rows.SEQUENTIAL, rows.UNVERIFIED, rows.FOREIGN, rows.CERTAIN),
        rows.sequential,
        rows.download,
    ),
    Scenario(("four-cold",), rows.four_readers),
    Scenario(("random-cold-1", "random-cold-16"), rows.random_cold),
    Scenario(("random-warm-1", "random-warm-16"), rows.random_warm),
    Scenario(training.ROWS, training.training),
    Scenario(("tar-cold", "tar-disk"), rows.archiving),
    Scenario(("list-first", "list-again"), rows.listing),
    Scenario(("mount-list",), rows.mounting),
    *(
        Scenario(
            (f"distant-{round_trip_ms}-large", f"distant-{round_trip_ms}-small"),
            distant_rows.reading(round_trip_ms),
        )
        for round_trip_ms in distant_rows.ROUND_TRIPS_MS
    ),
    Scenario(("datasets-mount",), many_rows.datasets),
    Scenario(("shown-list", "shown-again"), many_rows.shown),
    Scenario(("many-first", "many-find", "many-second"), many_rows.many),
)
ROWS = tuple(row for scenario in SCENARIOS for row in scenario.rows)
ROWS_OF_CHANNEL = (
    *("random-warm-1", "random-warm-16", *training.ROWS, "tar-cold", "tar-disk"),
    *("list-first", "list-again", "mount-list", "shown-list", "shown-again"),
    *("many-first", "many-find", "many-second"),
)


def titles(sizes: Sizes) -> dict[str, str]:
    """Return what each row is called in the table, in its order."""
    large = f"{sizes.large_bytes / MIB:,.0f} MiB"
    cold, warm = sizes.random_reads, sizes.random_reads * WARM_READS_PER_COLD
    tar = f"tar of {sizes.small_items:,} x 4 KiB"
    images = f"{training.PROCESSES} processes, {sizes.image_items:,} x 100 KiB shuffled"
    return {
        "sequential-cold": f"{large}, cold",
        "first-byte": "its first 128 KiB, cold",
        "sequential-disk": f"{large}, disk cache",
        "sequential-again": f"{large}, page cache",
        "sequential-off": f"{large}, cold, --verify off",
        "sequential-foreign": f"{large}, cold, no block hashes",
        "sequential-certain": f"{large}, cold, and md5sum",
        "four-cold": "4 readers of a quarter each, cold",
        "random-cold-1": f"{cold:,} random 4 KiB, cold, 1 reader",
        "random-cold-16": f"{cold:,} random 4 KiB, cold, 16 readers",
        "random-warm-1": f"{warm:,} random 4 KiB, warm, 1 reader",
        "random-warm-16": f"{warm:,} random 4 KiB, warm, 16 readers",
        "training-warm": f"{images}, warm",
        "training-again": f"{images}, again",
        "tar-cold": f"{tar}, cold",
        "tar-disk": f"{tar}, disk cache",
        "list-first": f"ls -lR of {sizes.listed_items:,}, first",
        "list-again": f"ls -lR of {sizes.listed_items:,}, again",
        "mount-list": f"mount and ls of {sizes.small_items:,}",
        **{
            f"distant-{ms}-{kind}": f"{what}, cold, {ms} ms away"
            for ms in distant_rows.ROUND_TRIPS_MS
            for kind, what in (
                ("large", f"{sizes.distant_bytes / MIB:,.0f} MiB"),
                ("small", f"tar of {sizes.distant_items:,} x 4 KiB"),
            )
        },
        "datasets-mount": f"mount and ls of {sizes.many_datasets:,} datasets",
        "shown-list": f"ls -l of {sizes.shown_items:,}",
        "shown-again": f"ls -l of {sizes.shown_items:,}, again",
        "many-first": f"mount of {sizes.many_items:,} items, first",
        "many-find": f"find in {sizes.many_items:,}",
        "many-second": f"mount of {sizes.many_items:,} items, second",
    }
