"""Reading kernels: what a file says of itself is believed only where it can be."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.linux import read_kernel
from bellwire_vmm.linux.bzimage import BzImage
from bellwire_vmm.linux.elf import Vmlinux
from vmm.kernels import LOAD, PVH_NOTE, bzimage, vmlinux


def test_a_bzimage_tells_where_it_goes_and_how_much_it_takes() -> None:
    kernel = read_kernel(bzimage(b"\x90\xf4", load=0x100_0000))
    assert isinstance(kernel, BzImage)
    assert (kernel.load, kernel.entry, kernel.init_size) == (0x100_0000, 0x100_0200, 0x1_0000)
    assert bytes(kernel.payload[0x200:0x202]) == b"\x90\xf4"
    assert (kernel.initrd_end, kernel.longest_command_line) == (0x8000_0000, 2047)
    assert kernel.header[0x202 - 0x1F1 :].startswith(b"HdrS")
    assert len(kernel.header) == 0x26C - 0x1F1  # to where the jump over it leads


def test_a_vmlinux_tells_its_segments_and_its_pvh_entry() -> None:
    kernel = read_kernel(vmlinux(b"\x90\xf4", size=0x3000))
    assert isinstance(kernel, Vmlinux)
    (part,) = kernel.parts
    assert (part.address, bytes(part.data), part.end) == (LOAD, b"\x90\xf4", LOAD + 0x3000)
    assert (kernel.entry, kernel.end) == (LOAD, LOAD + 0x3000)


def patched(image: bytes, offset: int, form: str, *values: int | bytes) -> bytes:
    changed = bytearray(image)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"", "neither a bzImage nor an ELF file"),
        (b"#!/bin/sh\n" * 100, "neither a bzImage nor an ELF file"),
        (bzimage()[:0x240], "no setup header"),
        (patched(bzimage(), 0x1FE, "<H", 0), "boot flag"),
        (bzimage(version=0x020B), "boot protocol 2.11: expected 2.12"),
        (bzimage(flags=0), "64-bit mode"),
        (bzimage(load=0x1000), "wants 0x10000 bytes at 0x1000"),
        (bzimage(load=LOAD + 1), "wants 0x10000 bytes at 0x100001"),
        (bzimage(init_size=0), "wants 0x0 bytes"),
        (bzimage(init_size=0x100), "has 0x210 bytes, of 0x100"),
        (bzimage()[:-1], "ends after"),
        (patched(bzimage(), 0x1F4, "<I", 0xFFF), "ends after"),
        (patched(bzimage(), 0x1F4, "<I", 0xFFFF_FFFF), "cannot be"),
        (vmlinux()[:40], "no ELF file of 64 bits"),
        (patched(vmlinux(), 4, "<B", 1), "no ELF file of 64 bits"),
        (vmlinux(machine=183), "ELF machine 183: expected 62"),
        (vmlinux(note=b""), "no PVH entry point"),
        (vmlinux(note=PVH_NOTE.replace(b"Xen", b"GNU")), "no PVH entry point"),
        (vmlinux(note=struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x500)), "0x500 lies in none"),
        (vmlinux(note=struct.pack("<III", 0xFFFF_FFFF, 0xFFFF_FFFF, 18)), "no PVH entry point"),
        (vmlinux(address=0x8000), "expected 1 MiB to 4 GiB"),
        (vmlinux(size=1 << 33), "expected 1 MiB to 4 GiB"),
        (vmlinux(b"\xf4" * 64, size=32), "expected 1 MiB to 4 GiB"),
        (vmlinux()[:-1], "lies outside its file"),
        (patched(vmlinux(), 32, "<Q", 1 << 40), "table of 2 program headers"),
        (patched(vmlinux(), 54, "<H", 32), "table of 2 program headers"),
        (patched(vmlinux(), 64 + 8, "<Q", (1 << 64) - 1), "segment 0 of the kernel lies outside"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(image: bytes, why: str) -> None:
    with pytest.raises(GuestImageError, match=why):
        read_kernel(image)


@pytest.mark.parametrize("make", [bzimage, vmlinux])
@given(data=st.data())
def test_hostile_files_are_kernels_or_refused(make: Callable[[], bytes], data: st.DataObject) -> None:
    image = bytearray(make())
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    del image[data.draw(st.integers(0, len(image))) :]
    try:
        kernel = read_kernel(bytes(image))
    except GuestImageError:
        return
    if isinstance(kernel, BzImage):
        assert len(kernel.payload) <= kernel.init_size
        assert kernel.load + kernel.init_size < 1 << 32
    else:
        assert all(part.address >= LOAD and part.address + len(part.data) <= part.end for part in kernel.parts)


@given(st.binary(max_size=256))
def test_a_note_section_of_anything_ends(note: bytes) -> None:
    try:
        read_kernel(vmlinux(note=note))
    except GuestImageError:
        return
