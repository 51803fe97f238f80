"""The kernel inside a bzImage: an ELF file, compressed by zstd (Linux, Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import ctypes
import struct


def vmlinux(image: bytes) -> bytes:
    """Unpack it with the system's libzstd."""
    start = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    packed = image[start + offset : start + offset + length]
    size = int.from_bytes(packed[-4:], "little")  # the kernel's build appends it
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
    unpacked = ctypes.create_string_buffer(size)
    done = library.ZSTD_decompress(unpacked, size, packed, length - 4)
    if done != size or not unpacked.raw.startswith(b"\x7fELF"):
        raise ValueError("no ELF file compressed by zstd in this kernel")
    return unpacked.raw
