"""The catalogue: all faults by name, those of every device and those of one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from bellwire.errors import OptionError
from bellwire.faults.changed import ChangedDma, ChangedRead, Fuzz
from bellwire.faults.dma import CorruptDma, FailedDma, LateDma, LostDma, StaleDma, TornDma
from bellwire.faults.fault import Fault
from bellwire.faults.interrupts import DoubleIrq, IrqStorm, LateIrq, LostIrq, SpuriousIrq, WrongVector
from bellwire.faults.presence import ConfigOnes, EndlessReset, Gone, Hung, LinkDown, SlowReset
from bellwire.faults.registers import AllOnes, DoubleWrite, LateRing, LateWrite, LostRing, LostWrite, Slow, Stuck

if TYPE_CHECKING:
    from bellwire.device import PciDevice

GENERIC: tuple[type[Fault], ...] = (
    AllOnes,
    Stuck,
    LostWrite,
    LateWrite,
    DoubleWrite,
    LostRing,
    LateRing,
    Slow,
    CorruptDma,
    StaleDma,
    TornDma,
    FailedDma,
    LostDma,
    LateDma,
    LostIrq,
    LateIrq,
    DoubleIrq,
    SpuriousIrq,
    IrqStorm,
    WrongVector,
    Hung,
    Gone,
    LinkDown,
    ConfigOnes,
    SlowReset,
    EndlessReset,
    ChangedRead,
    ChangedDma,
    Fuzz,
)
"""The faults that every device can have."""


def faults_of(device: type[PciDevice]) -> dict[str, type[Fault]]:
    """The faults that a device can have, by name: the generic ones, and then its own."""
    return {kind.name: kind for kind in (*GENERIC, *device.faults)}


def make_fault(device: type[PciDevice], name: str, arguments: dict[str, Any]) -> Fault:
    """A fault for a device. An OptionError if it has no such fault, or if an argument is wrong."""
    known = faults_of(device)
    kind = known.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise OptionError(f"{device.name} has no fault {name}: {hint}")
    return kind(**arguments)
