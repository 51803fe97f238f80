"""Why a vCPU cannot go on, in words: which instruction, where, and what that means."""

from __future__ import annotations

from bellwire_vmm.memory import GuestMemory
from kvm_ioctls import Exit, InternalError, Vcpu

LONGEST_INSTRUCTION = 15


def explain(vcpu: Vcpu, reason: Exit, memory: GuestMemory) -> str:
    """For a vCPU whose last `run` returned ``reason``: ``stopped at rip ...``."""
    rip = vcpu.get_regs().rip
    match reason:
        case InternalError():
            what = f"KVM cannot emulate [{reason.instruction.hex(' ')}] (suberror {reason.suberror})"
        case _:
            what = type(reason).__name__
    return f"stopped at rip {rip:#x}: {what}"
