"""Kernels that the VMM loads: bzImages and ELF files."""

from __future__ import annotations

import contextlib

from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.linux import read_kernel
from bellwire_vmm.linux.bzimage import BzImage
from fuzz.fuzzing import fuzz, mutated
from vmm.kernels import LOAD, bzimage, vmlinux


def attack(data: bytes) -> None:
    with contextlib.suppress(GuestImageError):
        kernel = read_kernel(data)
        if isinstance(kernel, BzImage):
            assert len(kernel.payload) <= kernel.init_size
            assert kernel.load + kernel.init_size < 1 << 32
        else:
            assert all(part.address >= LOAD and part.address + len(part.data) <= part.end for part in kernel.parts)


test_corpus, test_briefly, test_long = fuzz(
    attack, mutated([bzimage(b"\x90\xf4"), vmlinux(b"\x90\xf4", size=0x3000)]), "images"
)
