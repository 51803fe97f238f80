"""Extended capabilities by the dword: what a guest reads after a reset, and after it has written all ones."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import pytest

from bellwire import (
    AccessControl,
    Acs,
    Aer,
    Ats,
    Bar,
    CorrectableError,
    Doe,
    Dvsec,
    ErrorMessage,
    Ltr,
    MsiX,
    Pasid,
    PciDevice,
    PortType,
    PowerState,
    ResizableBars,
    SerialNumber,
    UncorrectableError,
    Vsec,
)
from bellwire.declare.capability import ExtendedCapability
from bellwire.testing import Guest

ALL_CONTROLS = AccessControl.REQUEST_REDIRECT | AccessControl.COMPLETION_REDIRECT | AccessControl.DIRECT_TRANSLATED
MIB = 1 << 20
frame, table = Bar(0, size=16 * MIB), Bar(2, size=4096)
UNCORRECTABLE = 0x007F_F030
CORRECTABLE = 0x0000_F1C1

Words = list[int]
CASES: dict[str, tuple[dict[str, Any], Words, Words]] = {
    "serial number": (
        {"it": SerialNumber(0x0242_57FF_FE00_0001)}, [0xFE00_0001, 0x0242_57FF], [0xFE00_0001, 0x0242_57FF],
    ),
    "VSEC": ({"it": Vsec(0xBEEF, revision=3, size=12)}, [0x00C3_BEEF, 0], [0x00C3_BEEF, 0]),
    "DVSEC": ({"it": Dvsec(0x1E98, 0xABCD, revision=2, size=12)}, [0x00C2_1E98, 0xABCD], [0x00C2_1E98, 0xABCD]),
    "LTR": ({"it": Ltr()}, [0], [0x1FFF_1FFF]),
    "ACS without controls": ({"it": Acs()}, [0], [0]),
    "ACS": ({"it": Acs(ALL_CONTROLS)}, [0x0000_004C], [0x004C_004C]),
    "ATS": ({"it": Ats()}, [0x0020], [0x801F_0020]),
    "ATS, 5 deep": ({"it": Ats(5, page_aligned=False)}, [0x0005], [0x801F_0005]),
    "PASID": ({"it": Pasid()}, [0x1400], [0x0001_1400]),
    "PASID with permissions": ({"it": Pasid(1, execute=True, privileged=True)}, [0x0106], [0x0007_0106]),
    "AER": (
        {"it": Aer()},
        [0, 0x0040_0000, 0x0046_2030, 0, 0xE000, 0, 0, 0, 0, 0],
        [0, UNCORRECTABLE, UNCORRECTABLE, 0, CORRECTABLE, 0, 0, 0, 0, 0],
    ),
    "AER with checksums": (
        {"it": Aer(ecrc=True)},
        [0, 0x0040_0000, 0x0046_2030, 0, 0xE000, 0xA0, 0, 0, 0, 0],
        [0, UNCORRECTABLE, UNCORRECTABLE, 0, CORRECTABLE, 0x1E0, 0, 0, 0, 0],
    ),
    # No answer is there to be taken by the last write: that sets DOE Error.
    "DOE without interrupt": ({"it": Doe()}, [0, 0, 0, 0, 0], [0, 0, 4, 0, 0]),
    "DOE": ({"table": table, "irq": MsiX(8, bar=table), "it": Doe(vector=5)}, [0xB, 0, 0, 0, 0], [0xB, 2, 6, 0, 0]),
    "resizable BAR": (
        {"frame": frame, "it": ResizableBars({frame: (4 * MIB, 16 * MIB)})}, [0x0000_0140, 0x220], [0x0000_0140, 0x220],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_dwords_after_a_reset_and_after_all_ones(case: str) -> None:
    body, fresh, written = CASES[case]
    kind: Any = type("Card", (PciDevice,), body, vendor=2, device=2, class_code=3, name="card")
    with Guest[Any](kind) as guest:
        at = guest.capability(kind.it)
        places = [at + 4 + 4 * number for number in range(len(fresh))]
        assert [guest.config_read(place, 4) for place in places] == fresh
        for place in places:
            guest.config_write(place, 0xFFFF_FFFF, 4)
        assert [guest.config_read(place, 4) for place in places] == written


NUMBERS: dict[type[IntEnum | IntFlag], list[int]] = {
    CorrectableError: [0x1, 0x40, 0x80, 0x100, 0x1000, 0x2000, 0x4000, 0x8000],
    UncorrectableError: [1 << bit for bit in (4, 5, *range(12, 23))],
    ErrorMessage: [1, 2, 4],
    AccessControl: [0x04, 0x08, 0x40],
    PowerState: [0, 1, 2, 3, 4],
    PortType: [0, 1, 9],
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_guest_knows_a_thing_by_its_number(kind: type[IntEnum | IntFlag]) -> None:
    assert [int(member) for member in kind] == NUMBERS[kind]


HEADERS: dict[type[ExtendedCapability], tuple[int, int]] = {
    Aer: (0x0001, 2),
    SerialNumber: (0x0003, 1),
    Vsec: (0x000B, 1),
    Acs: (0x000D, 1),
    Ats: (0x000F, 1),
    ResizableBars: (0x0015, 1),
    Ltr: (0x0018, 1),
    Pasid: (0x001B, 1),
    Dvsec: (0x0023, 1),
    Doe: (0x002E, 1),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_has_the_id_and_the_version_of_the_specification(kind: type[ExtendedCapability]) -> None:
    assert (kind.number, kind.version) == HEADERS[kind]


@pytest.mark.parametrize(
    ("capability", "size"),
    [
        (SerialNumber(1), 12), (Vsec(1, size=16), 16), (Dvsec(1, 1, size=12), 12), (Ltr(), 8), (Acs(), 8), (Ats(), 8),
        (Pasid(), 8), (Aer(), 44), (Doe(), 24), (ResizableBars({frame: (MIB,)}), 12),
        (ResizableBars({frame: (MIB,), table: (MIB,)}), 20),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_capability_has_the_size_that_its_specification_gives_it(capability: ExtendedCapability, size: int) -> None:
    assert capability.size == size
