"""Says why a vCPU cannot go on: which instruction, at which address, and what that means."""

from __future__ import annotations

from bellwire_vmm.errors import VmmError
from bellwire_vmm.machine.instruction import kind
from bellwire_vmm.machine.memory import PAGE, GuestMemory
from kvm_ioctls import Exit, FailEntry, InternalError, Shutdown, Stats, Vcpu

LONGEST_INSTRUCTION = 15
_EMULATION = 1
_RESET_RIP = 0xFFF0
_MUCH = 10  # emulated instructions for each exit: a KVM on hardware has one in some exits


def explain(vcpu: Vcpu, reason: Exit, memory: GuestMemory) -> str:
    """The message for a vCPU whose last `run` returned ``reason``: where it stopped, and why."""
    rip = vcpu.get_regs().rip
    where = f"stopped at rip {rip:#x}: "
    match reason:
        case InternalError(suberror=1):
            code = reason.instruction or code_at(vcpu, rip, memory)
            word = kind(code)
            return f"{where}KVM cannot emulate [{code.hex(' ')}]{f', {word}' if word else ''} (suberror {_EMULATION})"
        case InternalError():
            data = " ".join(f"{word:#x}" for word in reason.data)
            return f"{where}KVM gave up (suberror {reason.suberror}; {data or 'no data'})"
        case Shutdown() if rip == _RESET_RIP:
            # AMD's processors leave nothing of the guest's state behind, and KVM then resets it.
            return "stopped with a triple fault (an exception with no handler); the processor does not tell where"
        case Shutdown():
            code = code_at(vcpu, rip, memory)
            return f"{where}a triple fault (an exception with no handler) at [{code.hex(' ')}]"
        case FailEntry():
            return f"{where}the processor refused to run it (reason {reason.reason:#x}, on host CPU {reason.cpu})"
        case _:
            return f"{where}{reason}"


def meaning(stats: Stats) -> str:
    """A hint for a vCPU that stopped: whether this KVM emulates the guest's kernel."""
    counters = stats.read()
    emulated, exits = counters.get("insn_emulation", 0), counters.get("exits", 0)
    if emulated <= _MUCH * max(exits, 1):
        return ""
    return (
        f"KVM has emulated {emulated:,} instructions of this guest: here the processor does not run a guest's kernel "
        "itself, as it does with hardware virtualisation, and the emulation does not know all that Linux uses"
    )


def code_at(vcpu: Vcpu, address: int, memory: GuestMemory) -> bytes:
    """The bytes at a linear address: the instruction and some after it. Empty if no memory is mapped there."""
    place = vcpu.translate(address)
    if place is None:
        return b""
    try:
        return memory.read(place, min(LONGEST_INSTRUCTION, PAGE - place % PAGE))
    except VmmError:
        return b""
