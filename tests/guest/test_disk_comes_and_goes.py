"""An NVMe disk that is plugged in, taken out and killed under Linux. It has MSI-X, so QEMU must be the patched one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from attached import Device, running
from comings import SLOT, TALK, come_and_go, slot
from linux import Guest
from machine import NATIVE_HOT_PLUG
from patched import PatchedToolbox

pytestmark = [pytest.mark.guest, pytest.mark.long]

SCRIPT = f"""{TALK}
say ready
await "[ -b /dev/nvme0n1 ]"
dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=16 oflag=direct 2>/dev/null || exit 2
say plugged
await "[ ! -e {SLOT} ]"
[ ! -e /dev/nvme0 ] || exit 3
say unplugged
await "[ -b /dev/nvme0n1 ]"
say again
dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct 2>/root/said && exit 4
grep -o 'Input/output error' /root/said
echo 0 >/sys/bus/pci/slots/1/power
await "[ ! -e {SLOT} ]"
[ ! -e /dev/nvme0 ] || exit 5
say pulled
await "[ -b /dev/nvme0n1 ]"
dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || exit 6
say back
dmesg | grep -E 'Oops|BUG|Call Trace'
exit 0
"""


def test_linux_survives_a_disk_whose_server_is_killed(
    patched_tools: PatchedToolbox, tmp_path: Path, tell: Callable[..., None]
) -> None:
    guest = Guest(patched_tools, tmp_path)
    tell(guest.report)
    with ExitStack() as stack:
        first, _ = (
            stack.enter_context(running(Device("nvme", {"size": "1M"}), tmp_path / name)) for name in ("one", "two")
        )
        visitor = stack.enter_context(ThreadPoolExecutor(1))
        visited = visitor.submit(come_and_go, tmp_path, tmp_path / "one/device", first, tmp_path / "two/device")
        outcome = guest.run(SCRIPT, board=NATIVE_HOT_PLUG, modules=["nvme"], arguments=slot(tmp_path), timeout=120)
        visited.result()
    assert (outcome.status, outcome.output.split("\n")) == (0, ["Input/output error", ""])
