"""Disks under the QEMU with our patches: rings by descriptor, rings by message, and QEMU's own devices, in one guest.

``python tests/guest/ring_figures.py`` prints a table: medians of all rounds, their spread, and ratios to QEMU's own
device. Rings by message are what a QEMU without the patches does: the same QEMU does it with ``x-no-io-fds=on``. The
guest is emulated (TCG). With a busy poll, the worker is awake when a ring comes: the difference is what the wake-ups of
the worker take. The benchmark has the same figures (``--json``), if there is such a QEMU already.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from attached import Device, end, running
from bellwired.guest.archive import ArchiveError
from bellwired.guest.plan import Plugged
from figures import DISKS, FIO, LOADS, MIB, RUNTIME, Figure, parse
from linux import Guest
from patched import BuildError, PatchedToolbox, built, patched, report
from provision import provision

PATCHED, POLLED, STOCK, OWN = "by descriptor", "by descriptor, busy poll", "by message", "QEMU's own"
WHOSE = (PATCHED, POLLED, STOCK, OWN)
SERIALS = {PATCHED: "PATCHED", POLLED: "POLLED", STOCK: "STOCK", OWN: "OWN"}
BUSY_POLL = 200  # µs
FIND = """
nvme() { for d in /sys/block/nvme*; do grep -q $1 $d/device/serial && echo /dev/${d##*/}; done; }
virtio_blk() { for d in /sys/block/vd*; do grep -q $1 $d/serial && echo /dev/${d##*/}; done; }
"""


def script(rounds: int) -> str:
    """What the guest does: a line for each figure. The order changes from round to round."""
    lines = [FIND]
    fio = f"fio --name=x --ioengine=libaio --direct=1 --time_based --runtime={RUNTIME} --minimal"
    for number in range(rounds):
        turn = number % len(WHOSE)
        for disk in DISKS:
            for load in LOADS[:3]:
                for whose in WHOSE[turn:] + WHOSE[:turn]:
                    at = f"$({disk.replace('-', '_')} {SERIALS[whose]})"
                    found = f"$(tail -n 1 /out | cut -d ';' -f {load.word})"
                    lines += [f"{fio} --filename={at} {load.options} >/out 2>&1 || {{ cat /out; exit 1; }}"]
                    lines += [f'echo "figure@{disk}: {load.name}@{whose}@{found}@{load.unit}"']
    return "\n".join(lines) + "\n"


def measure(tools: PatchedToolbox, folder: Path, rounds: int) -> tuple[list[Figure], dict[str, str]]:
    """Run the guest. Returns the figures, and by device how it was rung."""
    plugged, arguments, processes = [], [], {}
    with ExitStack() as stack:
        for disk in DISKS:
            for whose in WHOSE:
                name = f"{disk}-{SERIALS[whose]}"
                image = folder / f"{name}.image"
                image.write_bytes(os.urandom(1 << 20) * MIB)
                if whose == OWN:
                    words = f"file={image},format=raw,if=none,id={disk},cache=writeback,aio=threads"
                    model = disk if disk == "nvme" else f"{disk}-pci"
                    arguments += ["-drive", words, "-device", f"{model},drive={disk},serial={SERIALS[whose]}"]
                    continue
                packed = {"packed": "no"} if disk == "virtio-blk" else {}
                flags = ("--busy-poll", str(BUSY_POLL)) if whose == POLLED else ()
                device = Device(disk, {"image": image, "serial": SERIALS[whose], **packed}, flags=flags)
                processes[name] = stack.enter_context(running(device, folder / name))
                plugged.append(Plugged(folder / name / "device", properties={"x-no-io-fds": whose == STOCK}))
        outcome = Guest(tools, folder).run(
            script(rounds), plugged, modules=["virtio_blk"], programs=[FIO], arguments=arguments, timeout=1200
        )
        if outcome.status:
            raise AssertionError(f"the guest's script has ended with status {outcome.status}:\n{outcome.output}")
        ways = {}
        for name, process in processes.items():
            end(process)
            log = (folder / name / "log").read_text()
            ways[name] = ", ".join(sorted(set(re.findall(r"rung by (\w+)", log))))
    return list(parse(outcome.output)), ways


def rows(figures: list[Figure]) -> list[list[str]]:
    """The table: a row for each load, a column for each way, and two ratios."""
    whats = list(dict.fromkeys(figure.what for figure in figures))
    table = []
    for what in whats:
        found = [figure for figure in figures if figure.what == what]
        values = {whose: [each.value for each in found if each.whose == whose] for whose in WHOSE}
        unit = found[0].unit
        row = [what]
        for whose in WHOSE:
            some = values[whose]
            row.append(f"{statistics.median(some):,.0f} {unit} ({min(some):,.0f}-{max(some):,.0f})")
        for whose in WHOSE[:-1]:
            ratios = [one / other for one, other in zip(values[whose], values[OWN], strict=True)]
            row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        table.append(row)
    return table


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and build no QEMU for them")
    arguments = parser.parse_args()
    try:
        tools = built(provision()) if arguments.json else patched(provision(), report)
        if tools is None:
            raise BuildError("there is no patched QEMU; make qemu builds it")
        with tempfile.TemporaryDirectory(prefix="bellwire-figures-") as folder:
            figures, ways = measure(tools, Path(folder), arguments.rounds)
    except (ArchiveError, BuildError, OSError) as error:
        print(f"no figures under the patched QEMU: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        json.dump(figures, sys.stdout)
        return 0
    heads = ["", *WHOSE, *(f"{whose} / {OWN}" for whose in WHOSE[:-1])]
    for row in (heads, ["---", *["--:"] * (len(heads) - 1)], *rows(figures)):
        print(f"| {' | '.join(row)} |")
    for name, how in ways.items():
        print(f"{name}: rung by {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
