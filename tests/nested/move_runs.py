"""What runs in the bed: a Linux that uses two disks is saved, restored, and moved to another process.

``python move_runs.py PLAN`` reads the words for the first boot (JSON). It prints what came of it as a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nested.linux_runs import Served

DISKS: dict[str, dict[str, Any]] = {"nvme": {"image": "disk", "queues": 2}, "virtio-blk": {"image": "raw"}}
SIZE = 16 << 20
PATIENCE = 1500.0  # seconds
SAVE, MOVE = "round 1 of /dev/nvme0n1", "round 2 of /dev/nvme0n1"
VMM = [sys.executable, "-m", "bellwired", "vmm"]


def devices(folder: Path, *, incoming: bool = False) -> list[Served]:
    """The disks, served below a new folder; ``incoming`` ones do not have the images yet."""
    folder.mkdir()
    return [Served(name, options | {"incoming": incoming}, folder) for name, options in DISKS.items()]


def plugged(served: list[Served]) -> list[str]:
    """Words that plug them in."""
    return [word for each in served for word in ("--device", os.fspath(each.path))]


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """How a command has ended, and what it has printed."""
    output, _ = process.communicate(timeout=PATIENCE)
    return {"status": process.returncode, "output": output}


def begun(*words: str) -> subprocess.Popen[str]:
    """A command that runs."""
    return subprocess.Popen(
        [*VMM, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(words: list[str]) -> dict[str, Any]:
    """All of it, in a folder of its own that is the working directory."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        os.chdir(folder)
        for image in ("disk", "raw"):
            Path(image).write_bytes(bytes(SIZE))
        here = devices(folder / "here")
        found: dict[str, Any] = {}
        found["save"] = told(begun(*words, *plugged(here), "--console", "first", "--save", "saved", "--when", SAVE))
        found["file"] = Path("saved").stat().st_size
        print(found["save"], flush=True)
        there = devices(folder / "there", incoming=True)
        target = stack.enter_context(begun("--listen", "move.sock", *plugged(there), "--console", "third"))
        deadline = time.monotonic() + PATIENCE
        while not Path("move.sock").exists() and target.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        leave = ("--migrate-to", "move.sock", "--when", MOVE, "--pause", "2", "--json", "figures")
        found["move"] = told(begun("--restore", "saved", *plugged(here), "--console", "second", *leave))
        print(found["move"], flush=True)
        found["end"] = told(target)
        found["figures"] = json.loads(Path("figures").read_text()) if Path("figures").exists() else {}
        for console in ("first", "second", "third"):
            path = Path(console)
            found[console] = path.read_text(errors="replace").replace("\r\n", "\n") if path.exists() else ""
        found["tallies"] = [each.tally() for each in (*here, *there)]
        return found


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))), flush=True)
