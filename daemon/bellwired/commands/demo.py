"""``bellwire demo``: ring a device in every possible way, and show the cost of each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from bellwire.paths import WRITABLE, Place
from bellwired.commands import show
from bellwired.demo import on_host, on_kvm
from bellwired.demo.spawn import device_process
from bellwired.demo.ways import WAYS, Measured, percentile
from bellwired.errors import CommandError
from kvm_ioctls import Kvm, KvmError
from vfio_user import Client, Mechanism

COUNT, LARGEST = 10_000, 400_000
WIDEST = 200  # columns: wider than the table
ROUNDTRIPS = 1000
PATIENCE = 60.0  # seconds for the device's process to start
SECONDS_A_RING = 0.005  # much longer than the slowest way takes: only a guest that hangs reaches it

CARRIERS = {
    Mechanism.IOEVENTFD: "kernel",
    Mechanism.IOEVENTFD_DATAMATCH: "kernel",
    Mechanism.IOREGIONFD_KERNEL: "kernel",
    Mechanism.IOREGIONFD_RELAY: "relay",
    Mechanism.IOREGIONFD_HOST: "host",
    Mechanism.SHADOW_KERNEL: "kernel",
    Mechanism.SHADOW_RELAY: "relay",
    Mechanism.SHADOW_HOST: "host",
}
"""The table's words for each mechanism. Where none is possible, a message brings the write to the device."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="ring a device in every possible way, and show the cost of each",
        description="Starts the bell device in a process of its own, boots a small guest on KVM, and has it ring every "
        "kind of doorbell. Ends with status 1 unless every ring arrived, values came in order, and ioeventfds cost no "
        "VM exit.",
    )
    parser.add_argument(
        "--count",
        type=_count,
        default=COUNT,
        metavar="N",
        help=f"rings in each way, 1 to {LARGEST} (default {COUNT}); a twentieth of that waits for interrupts",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE (- for stdout)")
    parser.add_argument("--no-kvm", action="store_true", help="ring from this process even where KVM could be used")
    parser.set_defaults(command=demo, takes=("json",))


def demo(arguments: argparse.Namespace) -> int:
    """Measure every way, print the table, and check that all rings have arrived."""
    out = show.console(to_stderr=str(arguments.json) == "-")
    if arguments.json:
        _write(arguments.json, "", mode="a")  # an unwritable output is an error before the measurement
    reason = "told not to by --no-kvm" if arguments.no_kvm else kvm_unusable()
    if reason:
        out.print(f"No KVM: {reason}. This process rings the device's descriptors in a guest's place.")
    trips = max(1, min(ROUNDTRIPS, arguments.count // 20))
    measured, runs = _measure(out, arguments.count, trips, kvm=not reason)
    ok = all(not each.problem for each in measured)
    _show(out, measured, kvm=not reason)
    if arguments.json:
        report = {
            "kvm": not reason,
            "ok": ok,
            "count": arguments.count,
            "roundtrips": trips,
            "kvm_runs": runs,
            "paths": [each.to_json() for each in measured],
        }
        _write(arguments.json, json.dumps(report, indent=2) + "\n")
    for each in measured:
        if each.problem:
            print(f"bellwire: {each.name}: {each.problem}", file=sys.stderr)
    return 0 if ok else 1


def kvm_unusable(path: str = "/dev/kvm") -> str:
    """Why KVM cannot be used, and what to do about it. Empty if it can."""
    try:
        with Kvm.open(path) as kvm, kvm.create_vm():
            return ""
    except KvmError as error:
        return str(error)


def _measure(out: Console, count: int, trips: int, *, kvm: bool) -> tuple[list[Measured], int]:
    columns = SpinnerColumn(), BarColumn(), TextColumn("{task.description}")
    steps = (on_kvm.STEPS if kvm else on_host.STEPS) * len(WAYS)
    with (
        device_process("bell") as sock,
        Client(sock, timeout=PATIENCE) as client,
        Progress(*columns, console=out, transient=True, refresh_per_second=4, disable=not out.is_terminal) as bar,
    ):
        task = bar.add_task("starting", total=steps + 1)

        def progress(text: str) -> None:
            bar.update(task, advance=1, description=text)

        if not kvm:
            return on_host.measure(client, WAYS, count, trips, progress), 0
        timeout = 60 + SECONDS_A_RING * (count + trips) * len(WAYS)
        return on_kvm.measure(client, WAYS, count, trips, timeout, progress)


def _show(out: Console, measured: Sequence[Measured], *, kvm: bool) -> None:
    title = "How a guest's write reaches the device" if kvm else "How a write of this process reaches the device"
    caption = "ring: µs that one costs the vCPU; trip: µs from ring to interrupt handler"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0)
    table.add_column("path", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for heading in ("rung", "received", "exits", "ring", "trip p50", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in measured:
        exits = "-" if each.vm_exits is None else str(each.vm_exits)
        table.add_row(
            each.name,
            CARRIERS.get(each.mechanism, "message"),
            str(each.rung),
            f"[red]{each.received}[/red]" if each.problem else str(each.received),
            f"[green]{exits}[/green]" if each.vm_exits == 0 else exits,
            f"{each.ring_us:.2f}",
            f"{percentile(each.trips_us, 50):.0f}",
            f"{percentile(each.trips_us, 99):.0f}",
        )
    whole = Measurement.get(out, out.options.update(max_width=WIDEST), table).maximum
    out.width = max(out.width, whole)  # rather wrapped by a narrow terminal than cut short
    out.print(table)
    cost = {each.name: each.ring_us for each in measured}
    first, posted, waited = (cost.get(way.name, 0.0) for way in (WAYS[0], *WAYS[-2:]))
    if first > 0:
        out.print(
            f"Against one ring by ioeventfd, a posted REGION_WRITE costs {posted / first:.1f} times as much, "
            f"and one with a reply {waited / first:.1f} times."
        )


def _write(path: Path, text: str, mode: str = "w") -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        with Place(path) as place:
            fd = place.open(os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "a" else os.O_TRUNC), 0o666, WRITABLE)
        with open(fd, mode) as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"{path}: cannot write: {error.strerror}") from None


def _count(text: str) -> int:
    try:
        count = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 1 <= count <= LARGEST:
        raise argparse.ArgumentTypeError(f"{count}: expected 1 to {LARGEST}")
    return count
