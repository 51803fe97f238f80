"""A Linux guest boots with an nvme that is recorded; the recording is replayed without QEMU, and nothing differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.registers import FATAL, Registers
from bellwire.recording import Difference, replay
from bellwire.recording.format import Body, entries
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
    found = []
    for entry in entries(path):
        if entry.kind == "R":
            body = Body(entry)
            body.number()
            if (body.number(), body.number()) == (0, Registers.csts.offset):
                found.append(entry.number)
    return found


def test_the_recorded_boot_of_a_linux_guest_is_replayed_identically(
    linux: Callable[..., Outcome], tmp_path: Path
) -> None:
    written, path = tmp_path / "nvme.bwrec", tmp_path / "copy.bwrec"
    ran = linux(SESSION, Device("nvme", {"size": "64M"}, flags=("--record", str(written))))
    assert ran.status == 0
    shutil.copyfile(written, path)  # the device runs on
    first = replay(path, Nvme, size="64M")
    assert [str(each) for each in first.differences] == []
    assert first.inputs > 200
    assert first.outputs > 1000
    assert replay(path, Nvme, size="64M") == first
    assert path.stat().st_size < 6 << 20  # of which 4 MiB are what the guest has written to the disk

    third = reads_of_status(path)[2]
    (difference,) = replay(path, Broken, size="64M").differences
    assert isinstance(difference, Difference)
    assert (difference.event, difference.what) == (third, "read of csts (BAR0+0x1c)")
    assert int(difference.got, 0) == int(difference.expected, 0) | FATAL
