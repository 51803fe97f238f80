"""The description of the machine that a run was made on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sysconfig
from pathlib import Path

from bench.processes import cpus


def describe() -> dict[str, object]:
    """The facts that a reader needs to interpret the figures."""
    return {
        "cpu": _first(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo")),
        "cpus": len(cpus()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "kvm": _kvm(),
        "python": f"{platform.python_version()}, {'with' if _profiled() else 'without'} profile-guided optimization",
        "cc": _compiler(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _profiled() -> bool:
    """Whether the interpreter was built with --enable-optimizations, which makes it about 15 % faster."""
    return "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")


def _compiler() -> str:
    said = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0]


def _kvm() -> str:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "none"
    modules = Path("/sys/module")
    return next((name for name in ("kvm_intel", "kvm_amd", "kvm_pvm") if (modules / name).exists()), "built in")


def _first(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text())
    return found.group(1) if found else "unknown"
