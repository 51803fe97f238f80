"""What machines are made of: QEMU, a kernel, and what builds modules for it. Found or fetched once in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.plan import HOST
from bellwired.guest.qemus import inspect
from bellwired.testing.wanted import Wanted


class NotHere(Exception):
    """A machine cannot be had here. The message says what is missing."""


class Tools:
    """The tools of a run of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def plan(self, wanted: Wanted) -> dict[str, Any]:
        """The plan of a machine, but for its devices."""
        tools = fetch_guest_tools(extra=("e2fsprogs", "nvme-cli", "fio", "iperf3", "systemd"))
        qemu = inspect(tuple(tools.qemu), tools.qemu_environment, tuple(tools.virtiofsd))
        return {"kernel": tools.kernel, "qemu": qemu, "root": HOST, "busybox": tools.busybox, **wanted.guest}

    def build(self, module: Path) -> None:
        """Build a module."""
        import subprocess

        headers = Path.home() / ".cache/bellwire/headers/6.12.117+deb13-cloud-amd64-1"
        words = ["make", "-C", str(module.parent), f"KDIR={headers / 'build'}", f"CC={headers / 'cc'}"]
        words.append("CONFIG_DEBUG_INFO_BTF_MODULES=")
        done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stdout + done.stderr
