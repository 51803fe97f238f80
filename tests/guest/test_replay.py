"""A Linux guest boots with devices that are recorded; they are replayed without QEMU, and nothing differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.registers import FATAL, Registers
from bellwire.recording import replay
from bellwire.recording.format import Body, entries
from bellwired.find import bundled
from linux import Outcome
from test_capture import SESSION

pytestmark = pytest.mark.guest


class Broken(Nvme):
    """Says at the third look at CSTS that it has failed."""

    looks = 0

    @Registers.csts.read
    def status(self) -> int:
        self.looks += 1
        return self.csts | (FATAL if self.looks == 3 else 0)


def reads_of_status(path: Path) -> list[int]:
    """The numbers of the records of reads of CSTS."""
    found: list[int] = []
    for entry in entries(path):
        if entry.kind == "R":
            body = Body(entry)
            body.number()
            if (body.number(), body.number()) == (0, Registers.csts.offset):
                found.append(entry.number)
    return found


OTHERS = """
dd if=/dev/urandom of=/dev/vda bs=64k count=16 oflag=direct 2>/dev/null || exit 3
dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null || exit 4
dd if=/dev/hwrng of=/dev/null bs=64 count=10 2>/dev/null || exit 5
"""


def test_the_recorded_devices_of_a_linux_guest_are_replayed_identically(
    linux: Callable[..., Outcome], tmp_path: Path
) -> None:
    options = {"nvme": {"size": "64M"}, "virtio-blk": {"size": "16M"}, "virtio-rng": {}, "edu": {}}
    written = {name: tmp_path / f"{name}.bwrec" for name in options}
    devices = [Device(name, options[name], flags=("--record", str(written[name]))) for name in options]
    ran = linux(SESSION + OTHERS, *devices, modules=["virtio_blk", "virtio-rng"])
    assert ran.status == 0
    for name, at in written.items():
        path = shutil.copyfile(at, tmp_path / f"copy-{name}")  # the device runs on
        first = replay(path, bundled()[name], **options[name])
        assert [str(each) for each in first.differences] == [], name
        assert min(first.inputs, first.outputs) > 50, name
        assert replay(path, bundled()[name], **options[name]) == first
    path = tmp_path / "copy-nvme"
    assert path.stat().st_size < 6 << 20  # of which 4 MiB are what the guest has written to the disk

    third = reads_of_status(path)[2]
    (difference,) = replay(path, Broken, size="64M").differences
    assert (difference.event, difference.what) == (third, "read of csts (BAR0+0x1c)")
    assert int(difference.got, 0) == int(difference.expected, 0) | FATAL
