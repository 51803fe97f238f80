"""The state of a vCPU.

KVM's requests depend on each other, so their order counts. Reading: KVM_GET_MP_STATE first, because it lets an INIT or
a SIPI that waits take effect; events last, because other requests may change them. Setting: the local APIC's base
(sregs) before its registers, those before the MSRs (the deadline of its timer is one), general registers before events
(KVM_SET_REGS forgets exceptions), and CR0 to CR4 with XCR0 before what XSAVE keeps.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from bellwire_vmm.errors import StateError
from kvm_ioctls import (
    Debugregs,
    IoctlError,
    KvmError,
    LapicState,
    MpState,
    Regs,
    Sregs,
    Vcpu,
    VcpuEvents,
    Xcrs,
    Xsave,
)

_TSC, _DEADLINE = 0x10, 0x6E0
_SVM_ENABLED, _VMX_ENABLED = 1 << 12, 1 << 13  # of EFER and CR4
_MSR = struct.Struct("<IQ")
_MP_STATE = struct.Struct("<I")
_STRUCTURES = (
    *(("sregs", Sregs), ("regs", Regs), ("xcrs", Xcrs), ("xsave", Xsave)),
    *(("debugregs", Debugregs), ("lapic", LapicState), ("events", VcpuEvents)),
)

S = TypeVar("S", bound=ctypes.Structure)


@dataclass(frozen=True, slots=True)
class ProcessorState:
    """The state of a vCPU, as KVM's structures. ``msrs`` are values by index."""

    mp_state: MpState
    sregs: Sregs
    regs: Regs
    xcrs: Xcrs
    xsave: Xsave
    debugregs: Debugregs
    lapic: LapicState
    msrs: dict[int, int]
    events: VcpuEvents

    @classmethod
    def of(cls, vcpu: Vcpu, indices: Iterable[int]) -> Self:
        """Take the state of a vCPU that does not run. ``indices`` are those of KVM_GET_MSR_INDEX_LIST.

        Raises StateError for a guest that runs guests itself: KVM keeps their state apart.
        """
        mp_state = vcpu.get_mp_state()
        sregs = vcpu.get_sregs()
        if sregs.efer & _SVM_ENABLED or sregs.cr4 & _VMX_ENABLED:
            raise StateError(f"vCPU {vcpu.id} is a hypervisor itself, and the state of its guests cannot be taken")
        return cls(
            mp_state,
            sregs,
            vcpu.get_regs(),
            vcpu.get_xcrs(),
            vcpu.get_xsave(),
            vcpu.get_debugregs(),
            vcpu.get_lapic(),
            _readable(vcpu, indices),
            vcpu.get_vcpu_events(),
        )

    def give(self, vcpu: Vcpu) -> None:
        """Set the state of a vCPU that does not run. Raises StateError, naming the request, if KVM refuses."""
        try:
            vcpu.set_mp_state(self.mp_state)
            vcpu.set_sregs(self.sregs)
            vcpu.set_regs(self.regs)
            if self.xcrs.nr_xcrs:  # none on a processor without XSAVE, where KVM takes none
                vcpu.set_xcrs(self.xcrs)
            vcpu.set_xsave(self.xsave)
            vcpu.set_debugregs(self.debugregs)
            vcpu.set_lapic(self.lapic)
            _set_msrs(vcpu, self.msrs)
            vcpu.set_vcpu_events(self.events)
        except KvmError as error:
            raise StateError(f"vCPU {vcpu.id}: KVM does not take its state: {error}") from None
        try:
            vcpu.kvmclock_ctrl()  # so that a watchdog of the guest does not take the pause for a stall
        except IoctlError as error:
            if error.errno != errno.EINVAL:  # it does not use that clock
                raise

    def pack(self, prefix: str) -> dict[str, bytes]:
        """The sections of this state; their names begin with ``prefix``."""
        named = {f"{prefix}.{name}": bytes(getattr(self, name)) for name, _ in _STRUCTURES}
        named[f"{prefix}.mp_state"] = _MP_STATE.pack(self.mp_state)
        named[f"{prefix}.msrs"] = b"".join(_MSR.pack(*each) for each in self.msrs.items())
        return named

    @classmethod
    def unpack(cls, prefix: str, sections: Mapping[str, bytes]) -> Self:
        """Undo `pack`. Raises StateError for a section that is missing or has another size."""
        found = {name: structure(kind, f"{prefix}.{name}", sections) for name, kind in _STRUCTURES}
        state, msrs = section(f"{prefix}.mp_state", sections), section(f"{prefix}.msrs", sections)
        if len(state) != _MP_STATE.size or _MP_STATE.unpack(state)[0] not in list(MpState):
            raise StateError(f"section '{prefix}.mp_state' has no state that this program knows: {state.hex()}")
        if len(msrs) % _MSR.size:
            raise StateError(f"section '{prefix}.msrs' has {len(msrs)} bytes, expected a multiple of {_MSR.size}")
        return cls(
            mp_state=MpState(_MP_STATE.unpack(state)[0]),
            msrs=dict(_MSR.iter_unpack(msrs)),
            **found,  # type: ignore[arg-type]
        )


def section(name: str, sections: Mapping[str, bytes]) -> bytes:
    """The section of this name. Raises StateError if there is none."""
    try:
        return sections[name]
    except KeyError:
        raise StateError(f"the machine's state has no section {name!r}") from None


def structure(kind: type[S], name: str, sections: Mapping[str, bytes]) -> S:
    """A section as a structure of KVM's. Raises StateError if it is missing, or has another size."""
    data = section(name, sections)
    if len(data) != ctypes.sizeof(kind):
        raise StateError(f"section {name!r} has {len(data)} bytes, expected {ctypes.sizeof(kind)}")
    return kind.from_buffer_copy(data)


def _readable(vcpu: Vcpu, indices: Iterable[int]) -> dict[int, int]:
    """The values of the MSRs that can be read. The list is KVM's, and this guest may lack some of them."""
    values: dict[int, int] = {}
    for index in sorted(indices, key=lambda index: (index != _TSC, index == _DEADLINE)):
        try:
            values |= vcpu.get_msrs([index])
        except IoctlError as error:
            if error.errno != errno.EINVAL:
                raise
    return values


def _set_msrs(vcpu: Vcpu, values: Mapping[int, int]) -> None:
    """Set MSRs, in the mapping's order. One that KVM does not set must have its value already."""
    rest = dict(values)
    while rest:
        try:
            vcpu.set_msrs(rest)
        except IoctlError as error:
            refused = error.arguments.get("index")
            if error.errno != errno.EINVAL or refused not in rest:
                raise
            if vcpu.get_msrs([refused])[refused] != rest[refused]:
                raise
            numbers = list(rest)
            rest = {index: rest[index] for index in numbers[numbers.index(refused) + 1 :]}
        else:
            return
