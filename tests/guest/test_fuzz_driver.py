"""bellwire fuzz-driver: a driver that trusts what it reads is caught, and what it takes is written down."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.faults.scenario import load_scenario
from bellwired.commands.fuzz_driver import FOUND
from bellwired.guest.toolbox import Toolbox
from daemon.commands import COMMAND

pytestmark = [pytest.mark.guest, pytest.mark.long]

TRUSTING = """
first=$(head -n 1 /sys/bus/pci/devices/0000:00:01.0/resource | cut -d ' ' -f 1)
for n in 1 2 3 4 5 6 7 8 9 10; do
    version=$(devmem $((first + 8)) 32)
    [ $version = 0x00010400 ] || [ $version = 0xFFFFFFFF ] || echo c >/proc/sysrq-trigger
done
"""
"""A driver in the shell: it brings the machine down when VS is not what it was, and the device is there."""


def test_a_driver_that_trusts_a_register_is_caught(tools: Toolbox, tmp_path: Path) -> None:
    script, output = tmp_path / "trusting.sh", tmp_path / "found.toml"
    script.write_text(TRUSTING)
    words = ["fuzz-driver", "nvme", "-o", "size=1M", "--script", str(script), "--output", str(output)]
    words += ["--p", "0.2", "--changes", "4", "--runs", "10", "--without", "dma", "--without", "irqs"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == FOUND, done.stdout + done.stderr
    assert "found: panic: Kernel panic - not syncing: sysrq triggered crash" in done.stdout
    (fault,) = load_scenario(output).faults(Nvme)
    assert (fault.name, fault.arguments["register"]) == ("changed-read", "vs")
