"""The figures of a run, put into docs/performance.md between its marks. `make bench-docs` brings the plots."""

from __future__ import annotations

from collections.abc import Sequence

from bench import doorbells, filters, guest, network, protocol, scale, storage
from bench.build import SOURCES
from bench.samples import Results, Series
from bench.tables import figure
from bench.targets import Verdict

PAGE = SOURCES.parent / "docs" / "performance.md"
BEGIN, END = "<!-- figures: {} -->\n", "<!-- end -->"
PARTS = (
    doorbells.COST,
    doorbells.HOOK,
    doorbells.TRIP,
    protocol.PART,
    filters.PART,
    storage.PART,
    storage.COST,
    network.PART,
    guest.PART,
    guest.PATCHED,
    guest.VHOST,
    scale.PART,
)
REFERENCES = {
    doorbells.COST: doorbells.C_VMM,
    doorbells.HOOK: "C",
    doorbells.TRIP: "C",
    protocol.PART: "C",
    filters.PART: filters.NONE,
    storage.PART: storage.BARE,
    network.PART: network.BARE,
    guest.PART: guest.QEMU,
    guest.PATCHED: guest.OWN,
    guest.VHOST: guest.QEMU,
}
"""The subject by which the other columns are divided."""


def write(results: Results, verdicts: Sequence[Verdict], about: dict[str, object]) -> None:
    """Write all measured figures into the page. Figures that were not measured stay."""
    text = PAGE.read_text()
    text = _replaced(text, "machine", _machine(about))
    text = _replaced(text, "targets", _targets(verdicts))
    for part in PARTS:
        if results.whats(part):
            text = _replaced(text, part, part_table(results, part))
    PAGE.write_text(text)


def part_table(results: Results, part: str) -> str:
    """A table with a line for each operation, a column for each subject, and their ratios."""
    subjects = results.subjects(part)
    reference = REFERENCES.get(part)
    others = [subject for subject in subjects if subject != reference] if reference else []
    rows = [["", *subjects, *(f"{subject} / {reference}" for subject in others)]]
    for what in results.whats(part):
        found = [results.get(part, what, subject) for subject in subjects]
        ratios = [results.ratio(part, what, subject, reference) for subject in others] if reference else []
        rows.append([what, *map(_cell, found), *("" if ratio is None else str(ratio) for ratio in ratios)])
    return _table(rows)


def _cell(series: Series | None) -> str:
    if series is None:
        return ""
    if sum(map(len, series.rounds)) == len(series.rounds):  # one figure a round
        return f"{figure(series.p50)} {series.unit} ({figure(min(series.medians))}-{figure(max(series.medians))})"
    return f"{figure(series.p50)} {series.unit}, p99 {figure(series.quantile(99))}"


def _targets(verdicts: Sequence[Verdict]) -> str:
    lines = [
        [each.target.name, str(each.target), str(each.ratio), "met" if each.met else "**missed**"] for each in verdicts
    ]
    return _table([["target", "bound", "measured", ""], *lines])


def _machine(about: dict[str, object]) -> str:
    return _table([["", ""], *([name, str(value)] for name, value in about.items())])


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *("--:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _replaced(text: str, name: str, by: str) -> str:
    """``text`` with the part between the marks of ``name`` replaced. Raises a ValueError without such marks."""
    begin = text.index(mark := BEGIN.format(name)) + len(mark)
    return text[:begin] + by + text[text.index(END, begin) :]
