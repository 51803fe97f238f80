"""A device with an option ROM, whose BIOS image prints a line on QEMU's debug port."""

from pathlib import Path

from bellwire import Bar, Option, PciDevice, Rom
from bellwire.testing import option_rom
from bellwire.testing.option_rom import START

VENDOR, DEVICE = 0x1234, 0xB007
TEXT = b"Hello from the option ROM of 1234:b007\n"
DEBUG_PORT = 0x402

PRINT = (
    b"\x60\x1e"  # pusha; push ds
    b"\x0e\x1f\xfc"  # push cs; pop ds; cld
    b"\xbe" + (START + 22).to_bytes(2, "little")  # mov si, TEXT
    + b"\xba" + DEBUG_PORT.to_bytes(2, "little")  # mov dx, DEBUG_PORT
    + b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # next: lodsb; test al, al; jz done; out dx, al; jmp next
    b"\x1f\x61\xcb"  # done: pop ds; popa; retf
)  # fmt: skip
assert len(PRINT) == 22


class Bootable(PciDevice, vendor=VENDOR, device=DEVICE, class_code=0x088000):
    """A device whose ROM is in a file."""

    mmio = Bar(0, size=4096)
    firmware = Option(Path(), help="the file with its expansion ROM")
    boot = Rom(firmware)


def write(path: Path, size: int = 0) -> Path:
    """Write the ROM into a file, of ``size`` bytes if that is more."""
    rom = option_rom(PRINT + TEXT + b"\0", vendor=VENDOR, device=DEVICE, class_code=0x088000)
    path.write_bytes(rom.ljust(size, b"\xff"))
    return path
