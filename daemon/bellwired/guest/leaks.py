"""Memory that a module has lost, as kmemleak finds it (Documentation/dev-tools/kmemleak.rst)."""

from __future__ import annotations

from collections.abc import Iterable

from bellwired.guest.errors import CommandFailed
from bellwired.guest.machine import Machine
from bellwired.guest.reports import Report, find_leaks

FILE = "/sys/kernel/debug/kmemleak"
OFF = 3
"""The script's status where the kernel has no kmemleak, or it is switched off."""
# kmemleak reports no object that is younger than five seconds, and none whose content has changed between two scans.
SCRIPT = f"""
[ -e {FILE} ] || mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
echo scan 2>/dev/null >{FILE} || exit {OFF}
sleep 6
echo scan >{FILE} && cat {FILE}
"""
PATIENCE = 600.0  # seconds: a scan reads all memory, and the guest may be emulated on a busy host


def read_leaks(machine: Machine, modules: Iterable[str] = ()) -> list[Report]:
    """The objects that nothing refers to any more. With ``modules``, those that these have allocated.

    It takes six seconds and two scans. Where kmemleak is not on, it finds nothing at once. Raises a MachineError if the
    guest ends meanwhile or the scans take longer than :data:`PATIENCE`.
    """
    done = machine.run(SCRIPT, timeout=PATIENCE)
    if done.status == OFF:
        return []
    if done.status:
        raise CommandFailed(f"{FILE} cannot be read: {done.stderr.decode(errors='replace').strip()}")
    return find_leaks(done.stdout.decode(errors="replace"), modules)
