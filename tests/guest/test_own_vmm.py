"""A stock Linux in our own VMM: it boots where KVM can run it, and where KVM cannot, that is said plainly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bellwired.guest.initramfs import archive
from bellwired.guest.toolbox import Toolbox

pytestmark = [pytest.mark.guest, pytest.mark.kvm]

INIT = """#!/bin/busybox sh
echo "up with $(/bin/busybox nproc) processors"
/bin/busybox poweroff -f
"""
FAILED = re.compile(
    r"bellwire: vCPU 0 stopped (with a triple fault|"
    r"at rip 0x[0-9a-f]+: (a triple fault|KVM cannot emulate \[[0-9a-f ]+\]))"
)


def test_linux_powers_off_or_the_instruction_that_kvm_cannot_run_is_named(tools: Toolbox, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(archive({"init": INIT.encode(), "bin/busybox": tools.busybox}, {"bin/sh": "busybox"}))
    words = ["--kernel", str(tools.kernel.image), "--initrd", str(initrd), "--append", "quiet", "--cpus", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "bellwired", "vmm", *words, "--memory", "256M", "--timeout", "300"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        assert "up with 2 processors" in done.stdout
        assert "The guest powered off" in done.stdout
        return
    assert done.returncode == 1
    assert FAILED.match(done.stderr), done
    assert "Traceback" not in done.stderr
    if "cannot emulate" in done.stderr:
        assert "the processor does not run a guest's kernel itself" in done.stderr
