"""bellwire fuzz-driver: a driver that trusts what it reads is caught, and what it takes is written down."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bellwire.bundled.bell import Bell
from bellwire.faults.scenario import load_scenario
from bellwired.commands.fuzz_driver import FOUND
from bellwired.guest.toolbox import Toolbox
from daemon.commands import COMMAND

pytestmark = [pytest.mark.guest, pytest.mark.long]

TRUSTING = """
there=/sys/bus/pci/devices/0000:00:01.0
echo 1 >$there/enable
first=$(head -n 1 $there/resource | cut -d ' ' -f 1)
for n in 1 2 3 4 5 6 7 8 9 10; do
    ident=$(devmem $first 32)
    [ $n -lt 5 ] || [ "$ident" = 0xBE110001 ] || echo c >/proc/sysrq-trigger
done
"""
"""A driver in the shell: from its fifth read on, it brings the machine down when a constant is not what it was."""


def test_a_driver_that_trusts_a_register_is_caught(tools: Toolbox, tmp_path: Path) -> None:
    script, output = tmp_path / "trusting.sh", tmp_path / "found.toml"
    script.write_text(TRUSTING)
    words = ["fuzz-driver", "bell", "--script", str(script), "--output", str(output)]
    words += ["--p", "0.3", "--changes", "4", "--runs", "10", "--without", "dma", "--without", "irqs"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == FOUND, done.stdout + done.stderr
    assert "found: panic: Kernel panic - not syncing: sysrq triggered crash" in done.stdout
    (fault,) = load_scenario(output).faults(Bell)
    assert (fault.name, fault.arguments["register"]) == ("changed-read", "ident"), done.stdout
    assert fault.arguments["at"] >= 5
