"""``bellwire boot`` where KVM runs Linux: in our own VMM, and in QEMU. It runs in the bed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nested.linux_runs import typed

BOOT = [sys.executable, "-m", "bellwired", "boot"]
PATIENCE = 400


def test_our_own_vmm_gives_a_shell_with_the_device_and_the_module_and_ends_with_exit() -> None:
    words = [*BOOT, "edu", "--vmm", "own", "--module", "uio_pci_generic", "--memory", "256", "--append", "quiet"]
    look = "cat /sys/bus/pci/devices/0000:00:01.0/device; grep -c ^uio_pci /proc/modules; echo $((6 * 7)) to $(id -u)\r"
    status, output = typed(words, [("~ # ", look), ("42 to 0\r\n", "exit\r")], PATIENCE)
    assert status == 0, output
    assert "0x11e8\n1\n42 to 0\n" in output
    assert "The guest powered off after " in output
    assert "edu: edu has served 1 client" in output
    assert output.endswith("the terminal is as it was")


def test_qemu_on_kvm_runs_a_command_with_its_streams_and_status(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("typed\n")
    script = "cat; cat given /sys/bus/pci/devices/0000:00:01.0/device; echo wrong >&2; echo lost >made; exit 7"
    done = subprocess.run(
        [*BOOT, "edu", "--", "sh", "-c", script],
        cwd=tmp_path,
        input="read\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "read\ntyped\n0x11e8\n"
    assert ", on KVM\n" in done.stderr
    assert "\nwrong\n" in done.stderr
    assert not (tmp_path / "made").exists()
