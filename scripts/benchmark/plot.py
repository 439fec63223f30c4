"""A picture of the times of all columns, row by row, on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path

from benchmark.report import Results


def draw(results: Results, path: Path) -> None:
    """Write a PNG."""
    import matplotlib  # 0.5 s, and only some want a picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [
        row
        for row in results.titles
        if any(results.seconds(row, column) is not None for column in results.columns)
    ]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(shown)), layout="constrained")
    for column in results.columns:
        points = [
            (seconds, len(shown) - place)
            for place, row in enumerate(shown)
            if (seconds := results.seconds(row, column)) is not None
        ]
        if points:
            is_ours = column == results.ours
            axes.plot(
                [seconds for seconds, _ in points],
                [height for _, height in points],
                marker="D" if is_ours else "o",
                markersize=9 if is_ours else 6,
                linestyle="none",
                zorder=3 if is_ours else 2,
                markerfacecolor="none" if column in results.floors else None,
                label=column,
            )
    axes.set_xscale("log")
    axes.set_xlabel("seconds (median; left is faster)")
    axes.set_yticks(
        range(len(shown), 0, -1), labels=[results.titles[row] for row in shown], fontsize=8
    )
    axes.grid(visible=True, axis="both", linewidth=0.4)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
