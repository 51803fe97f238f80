"""Linux as a machine's guest: an unmodified kernel, a command line, and perhaps an initial RAM disk."""

from __future__ import annotations

from dataclasses import dataclass

from bellwire_vmm.board import acpi
from bellwire_vmm.errors import GuestImageError
from bellwire_vmm.linux import entry
from bellwire_vmm.linux.bzimage import BzImage
from bellwire_vmm.linux.elf import Vmlinux
from bellwire_vmm.machine.memory import PAGE, GuestMemory
from kvm_ioctls import MpState, Vcpu

Kernel = BzImage | Vmlinux


def read_kernel(image: bytes) -> Kernel:
    """Read a bzImage, or a vmlinux with a PVH entry. Raises GuestImageError for anything else."""
    if Vmlinux.matches(image):
        return Vmlinux.unpack(image)
    if BzImage.matches(image):
        return BzImage.unpack(image)
    raise GuestImageError("the kernel is neither a bzImage nor an ELF file")


@dataclass(frozen=True, slots=True)
class Linux:
    """Linux as a `boot.Guest`, for a machine with a `board.Board` that has not run a guest before."""

    kernel: Kernel
    command_line: str = ""
    initrd: bytes = b""

    def place(self, memory: GuestMemory, vcpus: int) -> None:
        """Load the kernel at its own address, the RAM disk as high as allowed, and the firmware's tables low."""
        kernel = self.kernel
        words = self.command_line.encode()
        longest = entry.LONGEST_COMMAND_LINE
        if isinstance(kernel, BzImage):
            end, ceiling = kernel.load + kernel.init_size, min(memory.size, kernel.initrd_end)
            longest = min(longest, kernel.longest_command_line)
        else:
            end, ceiling = kernel.end, memory.size
        if len(words) > longest or b"\0" in words:
            raise GuestImageError(
                f"a kernel command line of {len(words)} bytes: expected at most {longest}, and no NUL"
            )
        start = (ceiling - len(self.initrd)) // PAGE * PAGE
        if end > memory.size or start < end:
            needed = end + len(self.initrd) + PAGE - 1 >> 20
            raise GuestImageError(
                f"the kernel and its RAM disk need {needed + 1} MiB to begin with: the guest has {memory.size >> 20}"
            )
        memory.write(entry.COMMAND_LINE, words + b"\0")
        memory.write(start, self.initrd)
        tables = entry.Tables(range(start, start + len(self.initrd)), acpi.write_tables(memory, vcpus))
        if isinstance(kernel, BzImage):
            memory.write(kernel.load, kernel.payload)
            entry.write_zero_page(memory, kernel, tables)
        else:
            for part in kernel.parts:
                memory.write(part.address, part.data)
            entry.write_start_info(memory, tables)

    def start(self, vcpu: Vcpu, number: int, vcpus: int) -> None:
        """Set the first vCPU to the kernel's entry. The others wait until it wakes them (INIT, SIPI)."""
        if number:
            vcpu.set_mp_state(MpState.UNINITIALIZED)
            return
        sregs = vcpu.get_sregs()
        if isinstance(self.kernel, BzImage):
            regs = entry.enter_64(sregs, self.kernel)
        else:
            regs = entry.enter_pvh(sregs, self.kernel)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        vcpu.set_mp_state(MpState.RUNNABLE)
