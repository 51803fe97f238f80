"""What runs in the bed: devices of ours, each in a process, and `bellwire vmm` with a Linux that uses them.

``python linux_runs.py PLAN`` reads a list of runs (JSON: devices with their options, the words of the command, what to
type and what to wait for first, addresses of links, commands for before and after). It prints what came of each as a
line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bellwire import PciDevice
from bellwire.serve.worker import Worker

PATIENCE = 240.0  # seconds, for a run


def device(name: str, options: dict[str, Any]) -> PciDevice:
    """A bundled device."""
    module = import_module(f"bellwire.bundled.{name.replace('-', '_')}")
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, PciDevice))
    (found,) = (kind for kind in kinds if kind.__module__.startswith(module.__name__))
    return found(**options)


class Served:
    """A device in a process of its own."""

    def __init__(self, name: str, options: dict[str, Any], folder: Path) -> None:
        self.path = folder / name
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        (until, self._end), (self._told, tell) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._serve(name, options, until, tell)
        os.close(until)
        os.close(tell)
        os.read(self._told, 1)

    def _serve(self, name: str, options: dict[str, Any], until: int, tell: int) -> None:
        status = 1
        try:
            served = device(name, options)
            worker = Worker(served, self._listener)

            def stop_in_time() -> None:
                os.read(until, 1)
                worker.stop()

            def tell_ready() -> None:
                os.write(tell, b".")

            threading.Thread(target=stop_in_time, daemon=True).start()
            worker.run(tell_ready)
            os.write(tell, json.dumps(served.core.tally.to_dict()).encode())
            status = 0
        finally:
            os._exit(status)

    def tally(self) -> dict[str, int]:
        """End the process; what has happened to the device."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._end, b".")
        with os.fdopen(self._told) as told:
            text = told.read()
        os.close(self._end)
        os.waitpid(self.pid, 0)
        self._listener.close()
        return json.loads(text) if text else {}


def typed(words: Sequence[str], keys: Sequence[tuple[str, str]], patience: float = PATIENCE) -> tuple[int | None, str]:
    """Run a command on a terminal: wait for a text, type another, and so on. Its status, and all that it printed."""
    ours, theirs = pty.openpty()
    before = subprocess.run(["stty", "-a"], stdin=theirs, capture_output=True, text=True, check=False).stdout
    output, waiting, deadline = b"", list(keys), time.monotonic() + patience
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        seen = 0
        while process.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                output += os.read(ours, 1 << 16)
            if waiting and (at := output.find(waiting[0][0].encode(), seen)) >= 0:
                seen = at + len(waiting[0][0])
                os.write(ours, waiting.pop(0)[1].encode())
        process.kill()
    while select.select([ours], [], [], 0)[0]:
        output += os.read(ours, 1 << 16)
    after = subprocess.run(["stty", "-a"], stdin=theirs, capture_output=True, text=True, check=False).stdout
    os.close(ours)
    os.close(theirs)
    restored = "the terminal is as it was" if before == after else f"before: {before}\nafter: {after}"
    return process.returncode, output.decode(errors="replace").replace("\r\n", "\n") + restored


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """One run, in a folder of its own that is the working directory of all its commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for words in plan.get("before", ()):
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        served = {each: Served(each, options, folder) for each, options in plan.get("devices", {}).items()}
        for link, address in plan.get("links", {}).items():
            subprocess.run(["/run/bed/busybox", "ip", "addr", "add", address, "dev", link], check=True)
        plugged = [word for each in served.values() for word in ("--device", os.fspath(each.path))]
        words = [sys.executable, "-m", "bellwired", "vmm", *plan["words"], *plugged]
        start = time.monotonic()
        if "keys" in plan:
            status, output = typed(words, plan["keys"])
        else:
            done = subprocess.run(
                [*words, "--console", "console"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
            status, output = done.returncode, done.stdout
        seconds = time.monotonic() - start
        console = folder / "console"
        tallies = {each: server.tally() for each, server in served.items()}
        after = [subprocess.run(words, capture_output=True, text=True, check=False) for words in plan.get("after", ())]
        return {
            "status": status,
            "output": output,
            "console": console.read_text(errors="replace").replace("\r\n", "\n") if console.exists() else "",
            "tallies": tallies,
            "after": [each.stdout for each in after],
            "seconds": seconds,
        }


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(run(each)), flush=True)
