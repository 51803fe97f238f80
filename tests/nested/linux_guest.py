"""What runs in the bed: devices of ours, each in a process, and `bellwire vmm` with a Linux that uses them.

``python linux_guest.py PLAN`` reads a plan (JSON: devices with options, the words of the command, commands to run
before and after) and prints what came of it as its last line, in JSON too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from bellwire import PciDevice
from bellwire.worker import Worker

PATIENCE = 60.0


def device(name: str, options: dict[str, Any]) -> PciDevice:
    """A bundled device."""
    module = import_module(f"bellwire.bundled.{name.replace('-', '_')}")
    (found,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, PciDevice) and kind.__module__ == module.__name__
    )
    return found(**options)


class Served:
    """A device in a process of its own; at its end, `tally` says what has happened to it."""

    def __init__(self, name: str, options: dict[str, Any], folder: Path) -> None:
        self.path = folder / name
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        ended, told = os.pipe(), os.pipe()
        self._process = os.fork()
        if not self._process:
            os.close(ended[1])
            self._serve(device(name, options), ended[0], told[1])
        os.close(ended[0])
        os.close(told[1])
        self._end, self._told = ended[1], told[0]

    def _serve(self, served: PciDevice, until: int, tell: int) -> None:
        status = 1
        try:
            worker = Worker(served, self._listener)
            threading.Thread(target=lambda: (os.read(until, 1), worker.stop()), daemon=True).start()
            worker.run()
            os.write(tell, json.dumps(served.core.tally.to_dict()).encode())
            status = 0
        finally:
            os._exit(status)

    def tally(self) -> dict[str, int]:
        """End the process."""
        os.close(self._end)
        with os.fdopen(self._told) as told:
            text = told.read()
        os.waitpid(self._process, 0)
        self._listener.close()
        return json.loads(text) if text else {}


@contextlib.contextmanager
def network(tap: str, address: str) -> Iterator[None]:
    """An interface that is there before the device is, with an address."""
    ip = ["/run/bed/busybox", "ip"]
    subprocess.run(["/run/bed/busybox", "tunctl", "-t", tap], check=False, stdout=subprocess.DEVNULL)
    yield
    subprocess.run([*ip, "addr", "add", address, "dev", tap], check=True)
    subprocess.run([*ip, "link", "set", tap, "up"], check=True)


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out a plan, in a folder that is the working directory of all its commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for words in plan["before"]:
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        served = {each: Served(each, options, folder) for each, options in plan["devices"].items()}
        words = [word for each in served.values() for word in ("--device", os.fspath(each.path))]
        done = subprocess.run(
            [sys.executable, "-m", "bellwired", "vmm", *plan["words"], *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        tallies = {each: server.tally() for each, server in served.items()}
        after = [subprocess.run(words, capture_output=True, text=True, check=False) for words in plan["after"]]
        return {
            "status": done.returncode,
            "report": done.stdout,
            "complaints": done.stderr,
            "console": Path("console").read_text(errors="replace") if Path("console").exists() else "",
            "tallies": tallies,
            "after": [each.stdout + each.stderr for each in after],
        }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
