"""A plugin of several files loses one of them, and its device goes on."""

from __future__ import annotations

import pytest

from operating.instance import PLAIN, Instance, connect, read, write

pytestmark = pytest.mark.daemon

DEVICE = """
from bellwire import Bar, PciDevice
{imported}

class Parted(PciDevice, vendor=0x1234, device=0x99, class_code=0xFF0000):
    "Has a register."

    mmio = Bar(0, size=64)
    word = mmio.reg(0)
"""


def test_new_code_may_do_without_a_module_of_the_old_code(daemon: Instance) -> None:
    file, part = daemon.plugins / "parted.py", daemon.plugins / "parted_part.py"
    part.write_text("")
    file.write_text(DEVICE.format(imported="import parted_part"))
    name = daemon.add('device = "parted"')
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        part.unlink()
        file.write_text(DEVICE.format(imported=""))
        assert name in daemon.reload()["restarted"]
        assert read(client, PLAIN) == 42
        assert daemon.reload()["restarted"] == []
