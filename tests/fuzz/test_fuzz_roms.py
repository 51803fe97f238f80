"""Expansion ROMs: the images in a file that a device's author or user has named."""

from __future__ import annotations

import contextlib

from bellwire.declare.rom_image import UNIT, RomError, images, padded
from bellwire.testing import option_rom
from fuzz.fuzzing import fuzz, mutated

ONE = option_rom(b"\xcb", vendor=1, device=2)
TWO = option_rom(bytes(600), vendor=1, device=2, last=False) + option_rom(b"", vendor=1, device=2, code_type=3)


def attack(data: bytes) -> None:
    with contextlib.suppress(RomError):
        found = images(data)
        assert found
        at = 0
        for image in found:
            assert (image.offset, image.size % UNIT) == (at, 0)
            at += image.size
        assert at <= len(data) <= len(padded(data, 0))


test_corpus, test_briefly, test_long = fuzz(attack, mutated([ONE, TWO]), "roms")
