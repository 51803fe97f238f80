"""Whether this machine's KVM runs a guest's kernel on the processor, or emulates it instruction by instruction.

Some hosts have KVM without hardware virtualisation: it emulates the instructions of ring 0. The ones that it knows are
enough for our micro guests and for SeaBIOS, and not for Linux: QEMU stops with a dump of registers ("KVM internal
error").
"""

from __future__ import annotations

from bellwire_vmm.errors import VmmError
from bellwire_vmm.machine.boot import LEAST_MEMORY, MicroGuest
from bellwire_vmm.vmm import Machine
from kvm_ioctls import Kvm, KvmError

ROUNDS = 1000
PATIENCE = 1.0
LOOP = b"\xb9" + ROUNDS.to_bytes(4, "little") + b"\xe2\xfe" + b"\x31\xc0\xe6\xf4"
"""mov ecx, ROUNDS; loop to itself; xor eax, eax; out to the port that ends the run."""


def emulates_kernels() -> bool | None:
    """Whether KVM emulates ring 0. None if that is unknown, most often because /dev/kvm cannot be used.

    It runs a loop of ``ROUNDS`` instructions in ring 0, and compares that with KVM's count of emulated instructions.
    """
    try:
        with Machine(LEAST_MEMORY) as machine:
            machine.load(MicroGuest(LOOP))
            result = machine.run(PATIENCE)
            emulated = machine.processors[0].stats.read().get("insn_emulation")
    except (VmmError, KvmError, OSError):
        return None
    return None if emulated is None else not result.ok or emulated >= ROUNDS


def makes_machines() -> bool:
    """Whether KVM can be opened and makes a VM: another hypervisor may have the processor's virtualisation."""
    try:
        with Kvm.open() as kvm, kvm.create_vm():
            return True
    except (KvmError, OSError):
        return False
