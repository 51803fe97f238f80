"""The figures as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.samples import Results
from bench.targets import Verdict


def show(out: Console, results: Results, verdicts: Sequence[Verdict]) -> None:
    """A table for each part, and one of the targets."""
    for part in results.parts:
        out.print(part_table(results, part))
    if verdicts:
        out.print(target_table(verdicts))


def part_table(results: Results, part: str) -> Table:
    """One line for each operation and subject. The last column is the ratio to the operation's first subject."""
    table = Table(title=part, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for heading in ("what", "by"):
        table.add_column(heading, no_wrap=True)
    for heading in ("p50", "p99", "rounds' p50", "by the last"):
        table.add_column(heading, justify="right", no_wrap=True)
    for what in results.whats(part):
        found = [
            (subject, series) for subject in results.subjects(part) if (series := results.get(part, what, subject))
        ]
        base = found[-1][1]
        for number, (subject, series) in enumerate(found):
            spread = f"{figure(min(series.medians))}-{figure(max(series.medians))}"
            ratio = series.over(base) if series is not base else None
            p50, p99 = (f"{figure(value)} {series.unit}" for value in (series.p50, series.quantile(99)))
            table.add_row("" if number else what, subject, p50, p99, spread, str(ratio or ""))
    return table


def target_table(verdicts: Sequence[Verdict]) -> Table:
    """The targets and the measured ratios."""
    table = Table(title="targets", title_justify="left", box=SIMPLE_HEAD, padding=0)
    for heading in ("target", "bound", "measured", ""):
        table.add_column(heading, no_wrap=True)
    for verdict in verdicts:
        colour, word = ("green", "met") if verdict.met else ("red", "missed")
        table.add_row(verdict.target.name, str(verdict.target), str(verdict.ratio), f"[{colour}]{word}[/{colour}]")
    return table


def figure(value: float) -> str:
    """A number with three significant digits; negative ones become 0."""
    value = max(0.0, value)
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
