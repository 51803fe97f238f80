"""``make bench``: measure side by side, judge by ratios, print tables, and write results.json and the plots."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import document, doorbells, filters, guest, machine, network, plots, protocol, scale, storage, tables
from bench.build import TARGET
from bench.samples import Results
from bench.targets import judge

Part = Callable[[Results, int], None]
PARTS: dict[str, Part] = {
    "doorbells": lambda results, rounds: doorbells.measure(results, rounds=rounds, count=4096, trips=400),
    "protocol": lambda results, rounds: protocol.measure(results, rounds=rounds, count=4000),
    "filters": lambda results, rounds: filters.measure(results, rounds=rounds, count=4000),
    "storage": lambda results, rounds: storage.measure(results, rounds=rounds, count=8000),
    "network": lambda results, rounds: network.measure(results, rounds=rounds, count=16 * network.WAITING),
    "guest": lambda results, rounds: guest.measure(results, rounds=max(2, rounds // 2)),
    "patched": lambda results, rounds: guest.measure_patched(results, rounds=max(2, rounds // 2)),
    "vhost": lambda results, rounds: guest.measure_vhost(results, rounds=max(2, rounds // 2)),
    "scale": lambda results, rounds: scale.measure(results, rounds=max(1, rounds // 2), count=1000),
}
ROUNDS = 3
WIDTH = 110


def main() -> int:
    """Run the parts that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often to take turns (default {ROUNDS})")
    parser.add_argument("--output", type=Path, default=TARGET, help="where results.json and the plots go")
    parser.add_argument("--document", action="store_true", help="put the figures into docs/performance.md too")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    if arguments.document and arguments.parts:
        parser.error("--document is for a whole run: all targets are to be of the same one")
    out, results = Console(highlight=False), Results()
    out.width = max(out.width, WIDTH)  # a narrow terminal wraps the table; rich would cut it
    begin, about = time.monotonic(), machine.describe()
    for name in arguments.parts or PARTS:
        out.print(f"{name} ...", style="dim", end=" ")
        start = time.monotonic()
        PARTS[name](results, arguments.rounds)
        out.print(f"{time.monotonic() - start:.0f} s", style="dim")
    verdicts = judge(results)
    tables.show(out, results, verdicts)
    seconds = time.monotonic() - begin
    about["the run"] = f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    report = {
        "machine": about,
        "seconds": round(seconds),
        "rounds": arguments.rounds,
        "targets": [
            {"name": each.target.name, "bound": str(each.target), "ratio": each.ratio, "met": each.met}
            for each in verdicts
        ],
        "series": results.to_json(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    drawn = plots.draw(results, arguments.output)
    if arguments.document:
        document.write(results, verdicts, about)
    names = ", ".join(path.name for path in drawn)
    out.print(f"{seconds:.0f} s; results.json, {names} are in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
