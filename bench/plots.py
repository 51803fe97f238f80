"""The figures as plots: distributions on a log scale, and cost against load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench import doorbells, protocol, scale, storage
from bench.processes import PYTHON
from bench.samples import QUANTILES, Results

COLUMNS = 3
mpl.rcParams["svg.hashsalt"] = "bellwire"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"  # text as text: a fifth of the size


def draw(results: Results, directory: Path) -> list[Path]:
    """An SVG file for each part that was measured."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for part, name in ((doorbells.TRIP, "doorbells"), (protocol.PART, "protocol")):
        whats = results.whats(part)
        if whats:
            figure = distributions(results, part, whats)
            drawn.append(_save(figure, directory / f"{name}.svg"))
    if results.whats(storage.PART):
        drawn.append(_save(disks(results), directory / "storage.svg"))
    if results.whats(scale.PART):
        drawn.append(_save(devices(results), directory / "scale.svg"))
    return drawn


def disks(results: Results) -> Figure:
    """Plot requests per second, and the device's CPU time for one, against the queue's depth."""
    figure, panels = _grid(6)
    kinds = [(write, direct) for write, direct in ((False, False), (True, False), (False, True))]
    for column, (write, direct) in enumerate(kinds):
        loads = [load for load in storage.LOADS if (load.write, load.direct, load.memory) == (write, direct, False)]
        loads = [load for load in loads if load.length == storage.SMALL]
        title = f"4 KiB {'write' if write else 'read'}, {'O_DIRECT' if direct else 'page cache'}"
        for row, (part, label) in enumerate(
            ((storage.PART, "requests a second"), (storage.COST, "CPU time of one, µs"))
        ):
            panel = panels[row * COLUMNS + column]
            for subject in results.subjects(part):
                found = [(load.depth, each) for load in loads if (each := results.get(part, load.name, subject))]
                panel.plot([depth for depth, _ in found], [each.p50 for _, each in found], marker="o", label=subject)
            _dress(panel, title, "depth", label)
    panels[0].legend(fontsize=7)
    return figure


def devices(results: Results) -> Figure:
    """Against the number of devices: how soon one answers, and what each takes."""
    figure, panels = _grid(2)
    for state in ("the others idle", f"{scale.BUSY} others rung without end"):
        found = [
            (number, series)
            for number in scale.COUNTS
            if (series := results.get(scale.PART, f"{scale.devices(number)}, {state}: ring to interrupt", PYTHON))
        ]
        for percent, style in ((50, "-"), (99, ":")):
            places = [series.quantile(percent) for _, series in found]
            panels[0].plot([number for number, _ in found], places, style, marker="o", label=f"{state}, p{percent}")
    _dress(panels[0], "ring to interrupt", "devices", "µs")
    panels[0].legend(fontsize=7)
    found = [
        (number, series)
        for number in scale.COUNTS
        if (series := results.get(scale.PART, f"{scale.devices(number)}: memory of each", PYTHON))
    ]
    panels[1].plot([number for number, _ in found], [series.p50 for _, series in found], marker="o")
    _dress(panels[1], "memory of each", "devices", "MiB (PSS)")
    panels[1].set_yscale("linear")
    panels[1].set_ylim(bottom=0)
    return figure


def distributions(results: Results, part: str, whats: Sequence[str]) -> Figure:
    """Plot cumulative distributions: one plot for each operation, one line for each subject."""
    figure, panels = _grid(len(whats))
    for panel, what in zip(panels, whats, strict=True):
        unit = ""
        for subject in results.subjects(part):
            series = results.get(part, what, subject)
            if series is not None:
                unit = series.unit
                panel.plot([series.quantile(percent) for percent in QUANTILES], QUANTILES, label=subject)
        _dress(panel, what, unit, "% of samples")
        panel.set_yscale("linear")
    fullest = max(panels, key=lambda panel: len(panel.lines))
    fullest.legend(fontsize=7)
    return figure


def _dress(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_title(title, fontsize=9)
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.grid(visible=True, which="major", alpha=0.3)
    panel.tick_params(labelsize=7)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.8 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, COLUMNS, number + 1) for number in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path
