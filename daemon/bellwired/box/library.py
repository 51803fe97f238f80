"""The files that every boxed device may read: Python, its libraries, and a few of the system's."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path

from bellwired.box.landlock import READ, Fs

WRITTEN = ("/dev/null", "/dev/zero", "/dev/full")
SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/max_map_count",
    "/sys/devices/system/cpu",
)
"""Libraries may lie in several of these. The others are what Python, libc and numpy look at, the same for all users."""
OURS = ("vfio_user", "bellwire", "bellwired", "kvm_ioctls", "bellwire_vmm")


@functools.cache  # made once, before workers are forked
def rules() -> list[tuple[Path, Fs]]:
    """Rules for Landlock."""
    places = {Path(place) for place in (*SYSTEM, *_python())}
    return [*((place, READ) for place in sorted(places)), *((Path(each), READ | Fs.WRITE_FILE) for each in WRITTEN)]


def _python() -> set[str]:
    """Folders of the standard library, of installed packages, and of Bellwire's own."""
    found = {place for place in sys.path if os.path.isabs(place) and place != "/"}
    found |= {os.path.dirname(os.__file__), os.path.join(sys.prefix, "lib")}
    for package in OURS:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            found.update(spec.submodule_search_locations or ())
    return found
