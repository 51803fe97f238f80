"""What a guest has seen of a device, and how two plans differ: in words, with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import Bar, IntX, Msi, MsiX, Power, Saved, StateError, VendorCapability
from bellwire.model.seen import MOST_TOLD, differences, refusal
from bellwire.testing import Guest
from devices.versions import bar, edited, version


def rung(offset: int = 8, size: int = 64, **how: Any) -> dict[str, Any]:
    mmio = Bar(0, size=size)
    go = mmio.doorbell(offset, **how)
    return {"mmio": mmio, "go": go, "rang": go.ring(lambda self, value=0: None)}


def framed(offset: int) -> dict[str, Any]:
    screen = Bar(1, size=1 << 16)
    return {"screen": screen, "frame": screen.area(offset, 4096)}


def region(**how: Any) -> dict[str, Any]:
    mmio = Bar(0, size=64)
    row = mmio.ioregion(0, 16, **how)
    return {"mmio": mmio, "row": row, "wrote": row.write(lambda self, offset, size, value: None)}


CHANGES: list[tuple[Any, Any, str]] = [
    (version(), version({"vendor": 0x4321}), "vendor id was 0x1234 and is 0x4321"),
    (version(), version({"device": 0x12}), "device id was 0x0011 and is 0x0012"),
    (version(), version({"class_code": 0x010802}), "class code was 0xff0000 and is 0x010802"),
    (version(), version({"revision": 3}), "revision was 0x00 and is 0x03"),
    (version(), version({"subsystem": (1, 2)}), "subsystem was 0x1234:0x0011 and is 0x0001:0x0002"),
    (version(), version({"express": False}), "bus was PCI Express and is conventional PCI"),
    (version(**bar(64)), version(**bar(128)), "BAR 0 was 0x40 bytes of 32-bit memory and is 0x80"),
    (version(), version(**bar(64)), r"BAR 0 \(0x40 bytes of 32-bit memory\) is new"),
    (version(mmio=Bar(0, size=64)), version(mmio=Bar(0, size=64, io=True)), "BAR 0 was .* and is 0x40 I/O ports"),
    (version(**framed(0)), version(**framed(8192)), r"area at 0x0 of BAR 1 \(0x1000 bytes\) is gone"),
    (version(irq=MsiX(2)), version(irq=MsiX(3)), "MSI-X was 2 vectors, .* and is 3 vectors"),
    (version(irq=Msi(1)), version(irq=Msi(2)), "MSI was 1 messages and is 2 messages"),
    (version(), version(irq=IntX()), r"INTx \(pin 1\) is new"),
    (version(**rung(8)), version(**rung(12)), r"doorbell at 0x8 of BAR 0 \(4 bytes, no value\) is gone"),
    (version(**rung()), version(**rung(value=True)), "was 4 bytes, no value and is .* each value"),
    (version(**rung()), version(**rung(latest=True)), "and is 4 bytes, latest value"),
    (version(**rung(match=1)), version(**rung(match=2)), r"doorbell at 0x8 of BAR 0 for 0x1 \(.*\) is gone"),
    (version(**rung(values=range(4))), version(**rung(values=range(5))), r"for 0x0 to 0x3 \(.*\) is gone"),
    (version(**region()), version(**region(posted=True)), "ioregion at .* was 0x10 bytes and is 0x10 bytes, posted"),
    (version(), version(extra=VendorCapability(b"x")), r"capability 0x09 at .* is new"),
    (version(), version(power=Power(d1=True)), r"capability 0x01 at 0x40 was .* and is"),
]


@pytest.mark.parametrize(("old", "new", "why"), CHANGES)
def test_a_change_of_what_the_guest_has_seen_is_refused_and_said(old: Any, new: Any, why: str) -> None:
    with pytest.raises(StateError, match=f"dut: the guest has seen something else: .*{why}.* Undo that, or unplug"):
        edited(old, new)
    edited(old, new, client=False).close()


def test_registers_fields_names_and_hooks_may_change_under_a_guest() -> None:
    old = version(**rung(), number=Saved(0))
    mmio = Bar(0, size=64)
    bell = mmio.doorbell(8)
    new = version(mmio=mmio, word=mmio.reg(0x20), start=bell, ring=bell.ring(lambda self: None), ratio=Saved(0.0))
    edited(old, new).close()


def test_a_long_list_of_differences_is_cut() -> None:
    old = {f"fact {number}": "a" for number in range(MOST_TOLD + 3)}
    new = dict.fromkeys(old, "b")
    assert len(differences(old, new)) == MOST_TOLD + 3
    assert "fact 7 was a and is b; and 3 more. Undo that" in refusal(old, new)
    assert refusal(old, dict(old)) == ""


def test_two_instances_of_a_class_look_the_same() -> None:
    kind = version(**rung(), irq=MsiX(2))
    with Guest(kind) as one, Guest(kind) as other:
        assert one.device.core.state.facts == other.device.core.state.facts
