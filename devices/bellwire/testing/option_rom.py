"""An image for an expansion ROM: code of a test, with the header that firmware looks for."""

from __future__ import annotations

import struct

from bellwire.declare.rom_image import UNIT, CodeType

START = 0x34
"""Where the code lies in the image: behind the header and the PCI Data Structure."""

_DATA = 0x1C
_JUMP = b"\xe9" + (START - 6).to_bytes(2, "little")  # from offset 3, where a BIOS calls the image, to the code


def option_rom(
    code: bytes, *, vendor: int, device: int, code_type: int = CodeType.BIOS, class_code: int = 0, last: bool = True
) -> bytes:
    """An image with ``code`` at :data:`START`. A BIOS runs it in real mode, by a far call; it returns by RETF.

    The image begins at offset 0 of CS. Several images may follow each other; only one of them is the ``last``.
    A ValueError if the image would have more than 127.5 KiB.
    """
    units = -(-(START + len(code) + 1) // UNIT)  # one byte makes the sum zero
    if units > 0xFF:
        raise ValueError(f"{len(code)} bytes of code: an image has at most {0xFF * UNIT} bytes")
    image = bytearray(struct.pack("<2sB3s18xH", b"\x55\xaa", units, _JUMP, _DATA).ljust(_DATA, b"\0"))
    image += struct.pack(
        "<4sHHHHB3sHHBBH",
        b"PCIR",
        vendor,
        device,
        0,
        START - _DATA,
        0,
        class_code.to_bytes(3, "little"),
        units,
        0,
        code_type,
        0x80 if last else 0,
        0,
    )
    image += code
    image += bytes(units * UNIT - len(image) - 1)
    image.append(-sum(image) & 0xFF)
    return bytes(image)
