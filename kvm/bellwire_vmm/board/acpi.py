"""The firmware's tables (ACPI 6.4 §5.2): processors, interrupt wiring, the PCI bus, a serial port, power-off, reset."""

from __future__ import annotations

import struct

from bellwire_vmm.board import aml
from bellwire_vmm.board.power import CONTROL, CONTROL_SIZE, EVENTS, EVENTS_SIZE, RESET, RESET_VALUE, SLEEP_OFF
from bellwire_vmm.board.uart import PORT, PORTS, SERIAL_LINE
from bellwire_vmm.machine.gsis import intx_gsi
from bellwire_vmm.machine.memory import GuestMemory
from bellwire_vmm.machine.pci import CONFIG_ADDRESS, SLOTS
from bellwire_vmm.machine.windows import HIGH_MEMORY, LOW_MEMORY
from bellwire_vmm.machine.windows import PORTS as PORT_WINDOW

ROOT = 0xE_0000
"""The address of the root pointer. A guest that is not told it searches from here on."""

_TABLES = ROOT + 0x40
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_LOCAL_APIC, _IOAPIC = 0xFEE0_0000, 0xFEC0_0000
_SCI = 9
_LEVEL_HIGH = 0xD
_WBINVD, _C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _HAS_RESET = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 10
_LEGACY_DEVICES, _NO_VGA, _NO_RTC = 1 << 0, 1 << 2, 1 << 5
_ENABLED = 1


def write_tables(memory: GuestMemory, vcpus: int) -> int:
    """Put all tables into the legacy hole, and return the address of the root pointer."""
    at = _TABLES
    places = []
    facs = struct.pack("<4sII", b"FACS", 64, 0).ljust(32, b"\0") + b"\x02".ljust(32, b"\0")

    def put(content: bytes) -> int:
        nonlocal at
        place, at = at, (at + len(content) + 63) // 64 * 64
        memory.write(place, content)
        return place

    facs_at, dsdt_at = put(facs), put(dsdt())
    places = [put(fadt(facs_at, dsdt_at)), put(madt(vcpus))]
    xsdt = put(table(b"XSDT", 1, struct.pack(f"<{len(places)}Q", *places)))
    memory.write(ROOT, root_pointer(xsdt))
    return ROOT


def root_pointer(xsdt: int) -> bytes:
    """RSDP (§5.2.5.3): a checksum over the first 20 bytes, and one over all."""
    pointer = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"BELLWR", 2, 0, 36, xsdt, 0))
    pointer[8] = -sum(pointer[:20]) & 0xFF
    pointer[32] = -sum(pointer) & 0xFF
    return bytes(pointer)


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header (§5.2.6). Its checksum makes the sum of all bytes zero."""
    size = _HEADER.size + len(body)
    whole = bytearray(_HEADER.pack(signature, size, revision, 0, b"BELLWR", b"BELLWIRE", 1, b"BELL", 1) + body)
    whole[9] = -sum(whole) & 0xFF
    return bytes(whole)


def madt(vcpus: int) -> bytes:
    """MADT: the interrupt controllers (§5.2.12)."""
    body = struct.pack("<II", _LOCAL_APIC, _ENABLED)  # and two PICs
    for number in range(vcpus):
        body += struct.pack("<BBBBI", 0, 8, number, number, _ENABLED)
    body += struct.pack("<BBBBII", 1, 12, vcpus, 0, _IOAPIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, _SCI, _SCI, _LEVEL_HIGH)
    return table(b"APIC", 5, body)


def fadt(facs: int, dsdt_at: int) -> bytes:
    """FADT: the fixed hardware (§5.2.9), power management and reset. Offsets count from the table's start."""
    body = bytearray(276)
    for offset, form, value in (
        (36, "<II", (facs, dsdt_at)),
        (46, "<H", (_SCI,)),
        (56, "<I", (EVENTS,)),
        (64, "<I", (CONTROL,)),
        (88, "<BB", (EVENTS_SIZE, CONTROL_SIZE)),
        (96, "<HH", (0xFFFF, 0xFFFF)),  # no C2, no C3
        (109, "<H", (_LEGACY_DEVICES | _NO_VGA | _NO_RTC,)),
        (112, "<I", (_WBINVD | _C1 | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _HAS_RESET,)),
        (116, "<BBBBQB", (1, 8, 0, 1, RESET, RESET_VALUE)),
        (140, "<Q", (dsdt_at,)),
    ):
        struct.pack_into(form, body, offset, *value)
    return table(b"FACP", 6, bytes(body[_HEADER.size :]))


def dsdt() -> bytes:
    """DSDT: the devices that no bus enumerates (§5.2.11.1)."""
    wiring = [
        aml.package(*map(aml.integer, (slot << 16 | 0xFFFF, pin, 0, intx_gsi(slot, pin + 1))))
        for slot in range(1, SLOTS)
        for pin in range(4)
    ]
    bridge = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.window(aml.BUSES, range(1)),
                aml.ports(CONFIG_ADDRESS, 8),
                aml.window(aml.PORTS, PORT_WINDOW),
                aml.window(aml.MEMORY, LOW_MEMORY),
                aml.window(aml.MEMORY, HIGH_MEMORY),
            ),
        ),
        aml.name("_PRT", aml.package(*wiring)),
    )
    serial = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name("_CRS", aml.resources(aml.ports(PORT, PORTS), aml.line(SERIAL_LINE))),
    )
    off = aml.name("_S5", aml.package(*map(aml.integer, (SLEEP_OFF, SLEEP_OFF, 0, 0))))
    return table(b"DSDT", 2, aml.scope("_SB", bridge, serial) + off)
