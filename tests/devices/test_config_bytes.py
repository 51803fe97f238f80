"""Config space byte by byte after power-on, and the bits that a guest can change (PCI 3.0 §6.1, §6.7, §6.8)."""

from __future__ import annotations

import struct

import pytest

from bellwire import Bar, IntX, Msi, MsiX, PciDevice
from bellwire.declare.vendor import VendorCapability
from bellwire.model.config_space import ConfigSpace, Effect
from bellwire.testing import Guest


class Everything(
    PciDevice,
    vendor=0x1AB4,
    device=0x42,
    class_code=0x02_0304,
    revision=7,
    subsystem=(0x1111, 0x2222),
    name="everything",
):
    irq = MsiX(65)
    msi = Msi(4)
    line = IntX(pin=3)
    memory = Bar(0, size=1 << 20, bits=64, prefetchable=True)
    ports = Bar(2, size=32, io=True)
    plain = Bar(3, size=1 << 12)
    odd = VendorCapability(b"\x05\x06", writable=b"\xf0")
    last = VendorCapability(b"\x07")


def fields(size: int, *known: tuple[int, int, int]) -> bytes:
    """Bytes that are 0 but for fields: offset, size and value."""
    made = bytearray(size)
    for offset, count, value in known:
        made[offset : offset + count] = value.to_bytes(count, "little")
    return bytes(made)


CONTENT = fields(
    4096,
    (0x00, 2, 0x1AB4),
    (0x02, 2, 0x0042),
    (0x06, 2, 0x0010),  # there is a capability list
    (0x08, 4, 0x02_0304_07),
    (0x10, 4, 0b1100),  # 64-bit, prefetchable
    (0x18, 4, 0b01),  # I/O
    (0x2C, 4, 0x2222_1111),
    (0x34, 1, 0x40),
    (0x3C, 1, 0xFF),  # no interrupt line is known
    (0x3D, 1, 3),
    # power management (PM 1.2 §3.2): version 3, No_Soft_Reset
    (0x40, 2, 0x4801),
    (0x42, 2, 0x0003),
    (0x44, 2, 0x0008),
    # MSI (§6.8.1): 64-bit addresses, four messages
    (0x48, 2, 0x5805),
    (0x4A, 2, 0x0084),
    # MSI-X (§6.8.2): 65 vectors; the table and the pending bits lie in BAR 5
    (0x58, 2, 0x6411),
    (0x5A, 2, 64),
    (0x5C, 4, 5),
    (0x60, 4, 65 * 16 | 5),
    # PCI Express (PCIe 4.0 §7.5.3): an endpoint of version 2 that can be reset
    (0x64, 2, 0xA010),
    (0x66, 2, 0x0002),
    (0x68, 4, 1 << 28 | 1 << 15),
    (0x6C, 2, 0x2810),
    (0x70, 4, 0x11),
    (0x76, 2, 0x11),
    # vendor-specific (§6.7), each on a dword
    (0xA0, 2, 0xA809),
    (0xA2, 1, 5),
    (0xA3, 2, 0x0605),
    (0xA8, 2, 0x0009),
    (0xAA, 1, 4),
    (0xAB, 1, 7),
)

WRITABLE = fields(
    4096,
    (0x04, 2, 0x0547),
    (0x0C, 1, 0xFF),
    (0x10, 8, (1 << 64) - (1 << 20)),
    (0x18, 4, (1 << 32) - 32),
    (0x1C, 4, (1 << 32) - (1 << 12)),
    (0x24, 4, (1 << 32) - (1 << 12)),  # the BAR of the MSI-X table
    (0x3C, 1, 0xFF),
    (0x44, 2, 0x0003),
    (0x4A, 2, 0x0071),
    (0x4C, 4, 0xFFFF_FFFC),
    (0x50, 4, 0xFFFF_FFFF),
    (0x54, 2, 0xFFFF),
    (0x5A, 2, 0xC000),
    (0x6C, 2, 0x7FFF),
    (0x74, 2, 0x01FB),
    (0xA3, 1, 0xF0),
)


@pytest.fixture
def config() -> ConfigSpace:
    """That of a device that has just had power."""
    device = Everything()
    device.core.config.reset()
    return device.core.config


def different(one: bytes, other: bytes) -> dict[str, tuple[str, str]]:
    return {hex(at): (hex(a), hex(b)) for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}


def test_every_byte_is_as_the_specifications_have_it(config: ConfigSpace) -> None:
    assert different(config.read(0, 4096), CONTENT) == {}


def test_a_guest_changes_the_writable_bits_and_no_other() -> None:
    config = Watched().config
    config.write(0, memoryview(b"\xff" * 4096))
    expected = bytes(a & ~w & 0xFF | w for a, w in zip(CONTENT, WRITABLE, strict=True))
    assert different(config.read(0, 4096), expected) == {}


def test_a_conventional_device_has_256_bytes_of_it_and_can_forget() -> None:
    class Old(PciDevice, vendor=7, device=2, class_code=3, express=False, no_soft_reset=False, name="bare-old"):
        pass

    expected = fields(
        256, (0x00, 4, 0x0002_0007), (0x06, 2, 0x0010), (0x08, 4, 0x300), (0x2C, 4, 0x0002_0007), (0x34, 1, 0x40),
        (0x3C, 1, 0xFF), (0x40, 2, 0x0001), (0x42, 2, 0x0003),
    )  # fmt: skip
    assert different(Old().core.config.read(0, 256), expected) == {}


# -- effects of writes


class Watched:
    """A config space of its own, and what it asks the device to do."""

    def __init__(self, kind: type[PciDevice] = Everything) -> None:
        device = kind()
        self.effects: list[Effect] = []
        self.config = ConfigSpace(device.core.config._space, device.core.state.config, self.effects.append)
        self.config.reset()

    def write(self, offset: int, value: int, size: int = 2) -> Effect:
        self.effects.clear()
        self.config.write(offset, memoryview(value.to_bytes(size, "little")))
        assert len(self.effects) <= 1
        return self.effects[0] if self.effects else Effect.NONE


NONE, RESET, UNMASKED, LEVEL, POWER = Effect.NONE, Effect.RESET, Effect.UNMASKED, Effect.LEVEL, Effect.POWER


@pytest.mark.parametrize(
    "steps",
    [
        [(0x04, 4, UNMASKED), (0x04, 4, NONE), (0x04, 0, NONE), (0x04, 7, UNMASKED)],
        [(0x04, 0x400, LEVEL), (0x04, 0x400, NONE), (0x04, 0, LEVEL)],
        [(0x5A, 0x8000, UNMASKED | LEVEL), (0x5A, 0x8000, NONE), (0x5A, 0xC000, NONE), (0x5A, 0x8000, UNMASKED),
         (0x5A, 0, LEVEL), (0x5A, 0x4000, NONE), (0x5A, 0, UNMASKED)],
        [(0x4A, 1, LEVEL), (0x4A, 0x11, NONE), (0x5A, 0x8000, UNMASKED), (0x4A, 0, NONE), (0x5A, 0, LEVEL)],
        [(0x6C, 0x8000, RESET), (0x6C, 0, NONE), (0x6C, 0x7FFF, NONE), (0x6C, 0xFFFF, RESET)],
    ],
    ids=["bus mastering", "INTx disable", "MSI-X", "MSI", "function-level reset"],
)  # fmt: skip
def test_a_write_has_the_effects_that_follow_from_what_changes(steps: list[tuple[int, int, Effect]]) -> None:
    watched = Watched()
    assert [watched.write(offset, value) for offset, value, _ in steps] == [effect for _, _, effect in steps]


@pytest.mark.parametrize(
    ("offset", "value", "size", "effect"),
    [
        (0x6D, 0x80, 1, RESET),
        (0x6C, 0x80, 1, NONE),
        (0x6E, 0x8080, 2, NONE),
        (0x6A, 0x8080_0000, 4, RESET),
        (0x6A, 0x0080, 2, NONE),
        (0x68, 0x8000_0000_0000, 6, RESET),
        (0x68, 0x80_0000_0000, 5, NONE),
    ],
)
def test_the_bit_that_resets_is_found_in_writes_of_any_width(
    offset: int, value: int, size: int, effect: Effect
) -> None:
    assert Watched().write(offset, value, size) == effect


def test_a_conventional_device_has_no_bit_that_resets() -> None:
    class Older(PciDevice, vendor=2, device=2, class_code=3, express=False, name="older"):
        pass

    watched = Watched(Older)
    assert {watched.write(at, 0xFFFF) for at in range(0x48, 0xFE, 2)} == {NONE}


def test_only_a_device_that_forgets_is_reset_by_waking_up() -> None:
    class Forgets(PciDevice, vendor=2, device=2, class_code=3, no_soft_reset=False, name="forgets"):
        pass

    watched = Watched(Forgets)
    assert [watched.write(0x44, state) for state in (0, 3, 3, 1, 2, 0, 0)] == [
        NONE, POWER, NONE, NONE, NONE, RESET | POWER, NONE,
    ]  # fmt: skip
    watched = Watched()
    assert [watched.write(0x44, state) for state in (3, 0)] == [POWER, POWER]


def test_flags_follow_the_bytes() -> None:
    config = Watched().config

    def flags() -> tuple[bool, ...]:
        return (
            config.bus_master, config.intx_enabled, config.msi_enabled, config.msix_enabled,
            config.msix_function_masked,
        )  # fmt: skip

    assert flags() == (False, True, False, False, False)
    for offset, value, expected in (
        (0x04, 0x0004, (True, True, False, False, False)),
        (0x04, 0x0404, (True, False, False, False, False)),
        (0x4A, 0x0001, (True, False, True, False, False)),
        (0x04, 0x0000, (False, False, True, False, False)),
        (0x4A, 0x0000, (False, True, False, False, False)),
        (0x5A, 0x4000, (False, True, False, False, True)),
        (0x5A, 0xC000, (False, False, False, True, True)),
        (0x5A, 0x8000, (False, False, False, True, False)),
    ):
        config.write(offset, memoryview(struct.pack("<H", value)))
        assert flags() == expected, (hex(offset), hex(value))
    config.reset()
    assert flags() == (False, True, False, False, False)


def test_the_interrupt_status_is_one_bit_of_the_status() -> None:
    config = Watched().config
    for asserted in (True, True, False):
        config.interrupt_status = asserted
        assert config.interrupt_status is asserted
        assert config.field(0x06) == 0x10 | asserted << 3


@pytest.mark.parametrize(("offset", "size", "heard"), [
    (0xA3, 2, [("odd", 0, 2)]), (0xA0, 3, []), (0xA2, 2, [("odd", 0, 1)]), (0xA4, 1, [("odd", 1, 1)]),
    (0xA5, 6, []), (0xA4, 8, [("odd", 1, 1), ("last", 0, 1)]),
])  # fmt: skip
def test_hooks_of_a_capability_get_the_bytes_of_its_body_that_are_touched(
    offset: int, size: int, heard: list[tuple[str, int, int]]
) -> None:
    told: list[tuple[str, str, int, int]] = []

    class Hooked(Everything, name="hooked"):
        @Everything.odd.read
        def read_odd(self, offset: int, size: int) -> None:
            told.append(("read", "odd", offset, size))

        @Everything.odd.write
        def write_odd(self, offset: int, size: int) -> None:
            told.append(("write", "odd", offset, size))

        @Everything.last.read
        def read_last(self, offset: int, size: int) -> None:
            told.append(("read", "last", offset, size))

        @Everything.last.write
        def write_last(self, offset: int, size: int) -> None:
            told.append(("write", "last", offset, size))

    with Guest(Hooked) as guest:
        guest.config_read(offset, size)
        assert told == [("read", *each) for each in heard]
        told.clear()
        guest.config_write(offset, 0, size)
        assert told == [("write", *each) for each in heard]
