"""Extended capabilities by the dword: what a guest reads after a reset, and after it has written all ones."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import (
    AccessControl,
    Acs,
    Aer,
    Ats,
    Bar,
    Doe,
    Dvsec,
    Ltr,
    MsiX,
    Pasid,
    PciDevice,
    ResizableBars,
    SerialNumber,
    Vsec,
)
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
    kind: Any = type("Card", (PciDevice,), body, vendor=1, device=2, class_code=3, name="card")
    with Guest[Any](kind) as guest:
        at = guest.capability(kind.it)
        places = [at + 4 + 4 * number for number in range(len(fresh))]
        assert [guest.config_read(place, 4) for place in places] == fresh
        for place in places:
            guest.config_write(place, 0xFFFF_FFFF, 4)
        assert [guest.config_read(place, 4) for place in places] == written
