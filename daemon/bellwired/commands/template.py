"""The files that ``bellwire new`` writes: a working device to start from."""

from __future__ import annotations

import keyword
import os
import re
import sys
from pathlib import Path
from string import Template

from bellwire.paths import Place, make_folders
from bellwired.errors import CommandError

_IMPORTED = ("bellwire", "pytest")
_TAKEN = ("Bar", "Guest", "GuestError", "IntFlag", "MsiX", "Option", "Path", "PciDevice", "Status")
"""Names that the files below use already."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

DEVICE = Template('''\
"""$name: what it is, in a line."""

from __future__ import annotations

from enum import IntFlag

from bellwire import Bar, GuestError, MsiX, Option, PciDevice


class Status(IntFlag):
    """What the guest reads in the status register."""

    DONE = 1


class $kind(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000, name="$name"):
    """Adds up numbers from guest memory, and interrupts when it is done."""

    most = Option(4096, help="how many numbers the guest may ask for at once")

    irq = MsiX(1)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, Status, access="ro")
    address = mmio.reg(0x08, size=8)
    count = mmio.reg(0x10)
    total = mmio.reg(0x18, size=8, access="ro")
    go = mmio.doorbell(0x20)

    @go.ring
    def add_up(self) -> None:
        """The doorbell was rung: the guest chose address and count, so both are checked."""
        if self.count > self.most:
            raise GuestError(f"{self.count} numbers asked for, at most {self.most}")
        numbers = memoryview(self.dma.read(self.address, 4 * self.count)).cast("I")
        self.total = sum(numbers)
        self.status = Status.DONE
        self.irq[0].trigger()
''')

TEST = Template('''\
"""Tests of $name, with no VM and no socket."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from bellwire import GuestError
from bellwire.testing import Guest, conformance

sys.path.insert(0, str(Path(__file__).parent))

from $name import $kind, Status  # noqa: E402

Test$kind = conformance($kind)


def test_it_adds_up_numbers_from_guest_memory() -> None:
    with Guest($kind) as guest:
        guest.memory[0x100:0x10C] = struct.pack("<3I", 1, 2, 39)
        guest.write($kind.address, 0x100)
        guest.write($kind.count, 3)
        guest.ring($kind.go)
        assert guest.read($kind.total) == 42
        assert guest.read($kind.status) == Status.DONE
        assert guest.interrupts.total() == 1


def test_too_many_numbers_are_the_guests_own_error() -> None:
    with Guest($kind, most=2) as guest:
        guest.write($kind.count, 3)
        with pytest.raises(GuestError):
            guest.ring($kind.go)
''')

CONFIG = Template("""\
# Put this into devices.d, and $name.py into plugins (or give its path here).
device = "$name"
# socket = "/run/bellwire/$name.sock"
# mode = "0600"

[options]
# most = 4096
""")


def write(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """Write the device, its test and its configuration. Existing files are not overwritten."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise CommandError(f"{name!r} is no name for a device", "lower-case letters, digits and _, as in my_nic")
    if name in sys.stdlib_module_names or name in _IMPORTED:
        raise CommandError(f"{name!r} is no name for a device", "a module that its test imports has this name")
    kind = "".join(word.capitalize() for word in name.split("_") if word)
    if kind in _TAKEN or keyword.iskeyword(kind):
        kind += "Device"
    files = {
        folder / f"{name}.py": DEVICE,
        folder / f"test_{name}.py": TEST,
        folder / f"{name}.toml": CONFIG,
    }
    for path in files:
        if os.path.lexists(path):
            raise CommandError(f"{path} exists already", "choose another name, or move it away")
    try:
        make_folders(folder)
        for path, text in files.items():
            with Place(path, follow=False) as place:
                place.create(text.substitute(name=name, kind=kind).encode())
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None
    device, test, config = files
    return device, test, config
