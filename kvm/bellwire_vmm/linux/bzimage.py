"""A bzImage: the compressed kernel as distributions ship it (Linux, Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from bellwire_vmm.errors import GuestImageError

HEADER = 0x1F1
"""The offset of the setup header, in the file and in the zero page."""

_SECTOR = 512
_BOOT_FLAG, _MAGIC = 0xAA55, b"HdrS"
_KERNEL_64 = 1  # xloadflags: there is an entry point for 64-bit mode
_ENTRY_64 = 0x200
_OLDEST = 0x020C  # the first protocol with xloadflags
_LEAST = 0x264  # bytes up to init_size and its end
_DEFAULT_SECTORS = 4
_LARGEST_INIT = 1 << 30


@dataclass(frozen=True, slots=True)
class BzImage:
    """The fields of the setup header that a boot loader needs, and the protected-mode part of the file.

    ``load`` is the address for that part. ``init_size`` is how many bytes from there on the kernel uses before it reads
    a memory map. ``longest_command_line`` is in bytes, without the NUL.
    """

    header: bytes
    payload: memoryview
    load: int
    init_size: int
    initrd_end: int
    longest_command_line: int

    @property
    def entry(self) -> int:
        """The address of the first instruction, in 64-bit mode."""
        return self.load + _ENTRY_64

    @classmethod
    def matches(cls, image: bytes) -> bool:
        """Whether ``data`` looks like a bzImage."""
        return image[0x202:0x206] == _MAGIC

    @classmethod
    def unpack(cls, image: bytes) -> Self:
        """Decode a file's bytes. Raises GuestImageError, which says what is wrong with them."""
        if len(image) < _LEAST or not cls.matches(image):
            raise GuestImageError("the kernel is no bzImage: it has no setup header")
        (flag,) = struct.unpack_from("<H", image, 0x1FE)
        if flag != _BOOT_FLAG:
            raise GuestImageError(f"the kernel's boot flag is {flag:#06x}: expected {_BOOT_FLAG:#06x}")
        (version,) = struct.unpack_from("<H", image, 0x206)
        if version < _OLDEST:
            raise GuestImageError(
                f"the kernel speaks boot protocol {version >> 8}.{version & 0xFF:02}: expected 2.12 or newer"
            )
        initrd_end, _, _, _, load_flags, command_line = struct.unpack_from("<IIBBHI", image, 0x22C)
        if not load_flags & _KERNEL_64:
            raise GuestImageError("the kernel has no entry point for 64-bit mode: expected one for x86-64")
        load, init_size = struct.unpack_from("<QI", image, 0x258)
        if load % 0x1000 or not 1 << 20 <= load < 1 << 31 or not 0 < init_size <= _LARGEST_INIT:
            raise GuestImageError(f"the kernel wants {init_size:#x} bytes at {load:#x}: no guest of ours has those")
        start = ((image[HEADER] or _DEFAULT_SECTORS) + 1) * _SECTOR
        size = 16 * int.from_bytes(image[0x1F4:0x1F8], "little")
        if not _ENTRY_64 < size <= init_size:
            raise GuestImageError(f"the kernel's system part has {size:#x} bytes, of {init_size:#x}: that cannot be")
        if start + size > len(image):
            raise GuestImageError(f"the kernel ends after {len(image):#x} bytes: expected {start + size:#x}")
        end = min(0x202 + image[0x201], 0x290)
        payload = memoryview(image)[start:]
        return cls(image[HEADER:end], payload[:init_size], load, init_size, initrd_end + 1, command_line)
