"""``python -m mutants``: make small mistakes in our own code, one at a time, and see whether a test notices.

A sample of each area is drawn by a seed; each mutant is tried with those tests that run the changed line, quickest
first. The report names every mutant that lived. Those that change nothing anybody could see are listed in
``equivalent.txt``, each with the reason, and do not count.

Why not mutmut or cosmic-ray: mutmut (3.8) leaves alone what is decorated, which is every hook of a device, and wants
all packages in one folder; cosmic-ray (8.7) changes the files in place and runs one command for all of them. Neither
draws samples.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from mutants.sites import Site, mutated, sites
from mutants.trial import TESTS, attempt, fast_first, measure

AREAS = {
    "vfio_user": (["protocol/vfio_user"], []),
    "sdk": (["devices/bellwire"], ["bundled", "virtio", "network", "testing"]),
    "nvme": (["devices/bellwire/bundled/nvme"], []),
    "virtio": (
        [
            "devices/bellwire/virtio",
            "devices/bellwire/bundled/virtio_blk",
            "devices/bellwire/bundled/virtio_console",
            "devices/bellwire/bundled/virtio_net",
            "devices/bellwire/bundled/virtio_rng.py",
        ],
        [],
    ),
}
"""Folders, and what is not looked at in them: the network's interfaces take root, and ``testing`` is for tests."""
FOLDER = Path("build/mutants")
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
LEAST = 95  # per cent
ENOUGH = (
    20.0  # seconds, as measured: of the tests that run a line, so much, the quickest; a mutant that others catch lives
)
LIKELY = 3  # files of tests that are tried first: those that run a line most often
SOURCES = ("protocol", "devices")  # what imports start from
SLOW = 1.0  # seconds: a test that fails after so long is asked again without the mistake, since deadlines fail by load


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="mutants", description="see whether tests notice small mistakes")
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"one of {', '.join(AREAS)}; all if none is named")
    parser.add_argument("--number", type=int, default=50, help="mutants of each area (50)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (1)")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long; each area has its part (60)")
    parser.add_argument("--only", metavar="TEXT", help="all mutants whose name has TEXT, instead of a sample")
    parser.add_argument("--tests", metavar="FILE", nargs="+", help="with the tests of these files, whatever they run")
    parser.add_argument("--measure", action="store_true", help="find out anew which tests run which lines")
    options = parser.parse_args()
    for area in options.areas:
        if area not in AREAS:
            parser.error(f"no area {area}: expected {', '.join(AREAS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutants: terminated"))  # after the child has been killed
    known, deadline = equivalent(), time.monotonic() + 60 * options.minutes
    reached = {} if options.tests else reach(options.measure)
    good, areas = True, options.areas or list(AREAS)
    for number, area in enumerate(areas):
        now = time.monotonic()
        share = max(0.0, deadline - now) / (len(areas) - number)  # what one area leaves over, the later ones have
        good &= try_area(area, options, reached, known, now + share)
    return 0 if good else 1


def try_area(area: str, options: argparse.Namespace, reached: dict[str, Any], known: set[str], deadline: float) -> bool:
    """One sample; whether enough of it was caught. A sample of which nothing could be tried is not good."""
    every = [site for file in files(area) for site in sites(str(file), file.read_text())]
    if options.only:
        chosen = [site for site in every if options.only in site.name]
    else:
        chosen = random.Random(f"{options.seed} {area}").sample(every, min(options.number, len(every)))
    caught, lived, same, left = 0, [], 0, 0
    for site in chosen:
        if site.name in known:
            same += 1
            continue
        if time.monotonic() > deadline:
            left += 1
            continue
        by = caught_by(site, reached, options.tests)
        caught += bool(by)
        print(f"{'caught' if by else 'LIVED '} {site.name} :: line {site.lines.start} {by}", flush=True)
        if not by:
            lived.append(site)
    tried = caught + len(lived)
    share = 100 * caught / tried if tried else 100.0
    print(
        f"{area}: {len(chosen)} of {len(every)} mutants sampled: {caught} caught, {len(lived)} lived, "
        f"{same} equivalent, {left} not tried: {share:.1f} % caught",
        flush=True,
    )
    for site in lived:
        print(f"  lived: {site.name} (line {site.lines.start})", flush=True)
    return share >= LEAST and (tried > 0 or left == 0)


def files(area: str) -> list[Path]:
    """Python files of an area."""
    folders, without = AREAS[area]
    found: list[Path] = []
    for folder in map(Path, folders):
        found += [folder] if folder.suffix else sorted(folder.rglob("*.py"))
    return [file for file in found if not {*file.parts} & {*without}]


def caught_by(site: Site, reached: dict[str, Any], tests: list[str] | None = None) -> str:
    """The test that notices, or ''."""
    if tests:
        return attempt(site.file, mutated(Path(site.file).read_text(), site.number), tests, 240)[0]
    lines = reached["files"].get(site.file, {})
    numbers = {number for line in site.lines for number in lines.get(str(line), ())}
    likely: set[str] = set()
    if not numbers:  # run by an import: whatever runs anything of the file, and first the files that name it
        likely = importers()[module(site.file)]
        numbers = {number for every in lines.values() for number in every}
        numbers |= {number for number, node in enumerate(reached["tests"]) if node.partition("::")[0] in likely}
    if not numbers:  # nothing but declarations: whatever runs anything beside it
        beside = str(Path(site.file).parent)
        numbers = {
            number
            for file, known in reached["files"].items()
            if file.startswith(beside)
            for every in known.values()
            for number in every
        }
    if not numbers:
        return ""
    nodes = [reached["tests"][number] for number in numbers]
    files = Counter(node.partition("::")[0] for node in nodes)
    likely = likely or {file for file, _ in files.most_common(LIKELY)}
    first = fast_first([node for node in nodes if node.partition("::")[0] in likely], reached["seconds"], ENOUGH / 4)
    found = failing(site, first, reached)
    return found or failing(site, fast_first(set(nodes) - set(first), reached["seconds"], ENOUGH), reached)


def failing(site: Site, order: list[str], reached: dict[str, Any]) -> str:
    """The first of these tests that notices, or ''."""
    if not order:
        return ""
    patience = 30 + 5 * sum(reached["seconds"][node] for node in order)
    tree = mutated(Path(site.file).read_text(), site.number)
    failed, seconds = attempt(site.file, tree, order, patience)
    if failed and seconds > SLOW and "::" in failed and attempt(site.file, None, [failed], 60)[0]:
        failed, _ = attempt(site.file, tree, [node for node in order if node != failed], patience)
    return failed


def module(file: str) -> str:
    """What a file of ours is imported as."""
    parts = Path(file).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def importers() -> defaultdict[str, set[str]]:
    """The files of tests that import each module by its own name. They may look at constants and run nothing of it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in test_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    found[name].add(str(path))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    found[alias.name].add(str(path))
    return found


def test_files() -> list[Path]:
    """The files whose tests are tried."""
    return sorted(path for folder in TESTS for path in Path(folder).rglob("*.py"))


def reach(anew: bool) -> dict[str, Any]:
    """Which tests run which lines; measured again when a test or a file of ours has changed since."""
    path, digest = FOLDER / "reach.json", hashlib.sha256()
    for file in (*sorted(each for folder in SOURCES for each in Path(folder).rglob("*.py")), *test_files()):
        digest.update(str(file).encode() + b"\0" + file.read_bytes())
    if path.exists() and not anew:
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("of") == digest.hexdigest():
            return found
    print("measuring which tests run which lines", flush=True)
    return measure(["vfio_user", "bellwire"], path, digest.hexdigest())


def equivalent() -> set[str]:
    """The names in the list; each has a reason behind it."""
    names = set()
    for line in EQUIVALENT.read_text().splitlines():
        if line and not line.startswith("#"):
            name, separator, reason = line.rpartition(" :: ")
            if not separator or not reason.strip():
                sys.exit(f"{EQUIVALENT}: no reason: {line}")
            names.add(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
