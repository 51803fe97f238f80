"""Pictures of timelines in docs/observing and docs/faults: ``make picture`` records them anew, and draws them.

Each is of what ``bellwire run --timeline`` has written, while a client lets the device of examples/copier copy. The
times are those of that run. tests/docs holds that a run of today has the same events.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from vfio_user import Client, IrqIndex, RegionIndex

ROOT = Path(__file__).parent.parent
DEVICE = ROOT / "examples/copier/copier.py"
PICTURES: dict[Path, Sequence[str]] = {
    ROOT / "docs/observing/timeline.svg": ("",),
    ROOT / "docs/faults/interrupts.svg": ("", "late-irq:by=1ms", "lost-irq:at=2"),
}
"""The pictures, with the fault of each of their panels; the first is without one."""
COPIES = (64, 16, 32)
"""The KiB of each copy that the client asks for."""
PACE, IRQ_TIMEOUT = 0.002, 0.005
"""Seconds from one copy to the next, and until the client gives up waiting for an interrupt."""
TRIES = 5
"""The quickest run is drawn: the others were held up by what else the machine did."""
MEMORY = 1 << 20

TRACKS = {1: "guest", 2: "device code", 4: "interrupts"}
"""The tracks that are drawn, by their number in the file."""
LEFT, WIDTH, TRACK, PANEL = 100, 640, 26, 124
COLOURS = {1: "#0969da", 2: "#bf8700", 4: "#1a7f37"}
STYLE = "text { font: 12px sans-serif; fill: #1f2328 } .fault { font-weight: bold } .axis { fill: #656d76 }"


@dataclass(frozen=True)
class Mark:
    """An event on a track, at milliseconds from the first one. ``took`` is 0 for one without a length."""

    track: int
    name: str
    at: float
    took: float = 0.0


def record(fault: str, timeout: float = IRQ_TIMEOUT) -> list[Mark]:
    """What happens under a fault, if the client gives up waiting for an interrupt after ``timeout`` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        socket, timeline = Path(folder, "copier.sock"), Path(folder, "timeline.json")
        words = [sys.executable, "-m", "bellwired", "run", str(DEVICE), "--socket-path", str(socket)]
        words += ["--runtime-dir", folder, "--ready-fd", "1", "--timeline", str(timeline), "--log-level", "error"]
        words += ["--filter", fault] if fault else []
        with subprocess.Popen(words, stdout=subprocess.PIPE) as serving:
            try:
                assert serving.stdout is not None
                serving.stdout.readline()
                copy(socket, timeout)
            finally:
                serving.terminate()
        return list(marks(json.loads(timeline.read_text())))


def copy(socket: Path, timeout: float) -> None:
    """Be the driver of the copier: ask for each copy, and wait for its interrupt."""
    memory, interrupt = os.memfd_create("guest"), os.eventfd(0, os.EFD_NONBLOCK)
    os.truncate(memory, MEMORY)
    try:
        with Client.connect(socket) as client:
            client.write(RegionIndex.CONFIG, 0x04, b"\x06\0")
            client.dma_map(0, MEMORY, memory)
            client.trigger_eventfds(IrqIndex.MSIX, 0, [interrupt])
            client.write(0, 0x18, (MEMORY // 2).to_bytes(8, "little"))
            due = time.monotonic()
            for size in COPIES:
                while time.monotonic() < due:
                    pass
                due = time.monotonic() + PACE
                client.write(0, 0x20, (size << 10).to_bytes(4, "little"))
                client.write(0, 0x28, bytes(4))
                if select.select([interrupt], [], [], timeout)[0]:
                    os.eventfd_read(interrupt)
    finally:
        os.close(memory)
        os.close(interrupt)


def marks(events: list[dict[str, object]]) -> Iterator[Mark]:
    """The marks of a timeline file, from the first ring on."""
    begun: dict[str, object] = {}
    first = None
    for event in events:
        track, phase, at = event.get("tid"), event["ph"], float(str(event.get("ts", 0))) / 1e3
        if first is None and (track, phase) == (1, "i") and event["name"] == "go":
            first = at
        if first is None or track not in TRACKS or event["name"] in ("client leaves", "reset"):
            continue
        if phase == "B":
            begun = event
        elif phase == "E":
            begin = float(str(begun["ts"])) / 1e3
            yield Mark(2, f"{begun['name']}", begin - first, at - begin)
        else:
            yield Mark(int(str(track)), f"{event['name']}", at - first)


def drawn(panels: dict[str, list[Mark]]) -> str:
    """The panels as SVG, below each other, with one scale."""
    end = max(mark.at + mark.took for found in panels.values() for mark in found)
    scale = WIDTH / (end * 1.04)
    height = PANEL * len(panels) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {height}">',
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (fault, found) in enumerate(panels.items()):
        lines += panel(fault, found, 10 + PANEL * number, scale, captioned=len(panels) > 1)
    for number in range(int(end) + 1):
        x = LEFT + number * scale
        lines.append(f'<path d="M{x:.1f} {height - 26}v6" stroke="#656d76"/>')
        lines.append(f'<text class="axis" x="{x:.1f}" y="{height - 6}">{number} ms</text>')
    return "\n".join([*lines, "</svg>", ""])


def panel(fault: str, found: list[Mark], top: int, scale: float, *, captioned: bool) -> Iterator[str]:
    """One panel: a line for each track, and its marks."""
    if captioned:
        yield f'<text class="fault" x="10" y="{top + 14}">{escape(fault) or "without a fault"}</text>'
    for row, (track, name) in enumerate(TRACKS.items()):
        y = top + 24 + TRACK * row
        yield f'<text x="10" y="{y + 17}">{name}</text>'
        yield f'<path d="M{LEFT} {y + TRACK - 1}h{WIDTH}" stroke="#d1d9e0"/>'
        for mark in found:
            if mark.track == track:
                x, width = LEFT + mark.at * scale, max(2.0, mark.took * scale)
                yield (
                    f'<rect x="{x:.1f}" y="{y + 5}" width="{width:.1f}" height="{TRACK - 8}" fill="{COLOURS[track]}">'
                    f"<title>{escape(mark.name)}</title></rect>"
                )
                yield f'<text x="{x + width + 3:.1f}" y="{y + 17}">{escape(mark.name)}</text>'


if __name__ == "__main__":
    for picture, faults in PICTURES.items():
        picture.parent.mkdir(exist_ok=True)
        runs = {fault: min((record(fault) for _ in range(TRIES)), key=lambda found: found[-1].at) for fault in faults}
        picture.write_text(drawn(runs))
