"""The figures as pictures: distributions on a log scale, and cost against load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import doorbells, protocol
from bench.samples import QUANTILES, Results

COLUMNS = 3
mpl.rcParams["svg.hashsalt"] = "bellwire"  # the same figures give the same file


def draw(results: Results, directory: Path) -> list[Path]:
    """An SVG file for each part that was measured."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for part, name in ((doorbells.TRIP, "doorbells"), (protocol.PART, "protocol")):
        whats = results.whats(part)
        if whats:
            figure = distributions(results, part, whats)
            drawn.append(_save(figure, directory / f"{name}.svg"))
    return drawn


def distributions(results: Results, part: str, whats: Sequence[str]) -> Figure:
    """How many of the samples took at most so long; one picture for each thing, one line for each who did it."""
    figure, panels = _grid(len(whats))
    for panel, what in zip(panels, whats, strict=True):
        unit = ""
        for subject in results.subjects(part):
            series = results.get(part, what, subject)
            if series is not None:
                unit = series.unit
                panel.plot([series.quantile(percent) for percent in QUANTILES], QUANTILES, label=subject)
        panel.set_xscale("log")
        panel.set_title(what, fontsize=9)
        panel.set_xlabel(unit, fontsize=8)
        panel.set_ylabel("% of samples", fontsize=8)
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.tick_params(labelsize=7)
    panels[0].legend(fontsize=7)
    return figure


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, COLUMNS, number + 1) for number in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path
