"""A virtual CPU: its registers, and the loop it runs in."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
import threading
from collections.abc import Iterable, Mapping
from enum import IntEnum

from . import requests, structs
from .coalesced import PAGE, CoalescedRing
from .cpuid import Cpuid
from .errors import InvalidArgumentError, ioctl_error
from .exits import Exit, ExitReason, Interrupted, decode, exit_reason
from .handle import Handle
from .ioctl import Ioctl, invoke, libc_ioctl
from .kick import kick_thread
from .stats import Stats

_REQUEST_INTERRUPT_WINDOW, _IMMEDIATE_EXIT, _READY_FOR_INTERRUPT = 0, 1, 12
_MSR_ENTRY = struct.Struct("=I4xQ")
_MSR_HEAD = ctypes.sizeof(structs.Msrs)
_RUN = requests.RUN.number


class MpState(IntEnum):
    """KVM_MP_STATE_* on x86: what a vCPU is waiting for."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class Vcpu(Handle):
    """One CPU of a VM, made by `Vm.create_vcpu`. One thread at a time may use it; any thread may call `kick`.

    A CPU other than 0 of a VM with an irqchip waits for an INIT until `set_mp_state(MpState.RUNNABLE)`.
    """

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int):
        super().__init__(fd)
        self.id = vcpu_id
        self._thread = 0
        self._rings: list[CoalescedRing] = []
        try:
            self._page = mmap.mmap(fd, mmap_size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor and unmap `struct kvm_run`. `kick` the thread out of `run()` first."""
        super().close()
        for ring in self._rings:
            ring.close()
        if hasattr(self, "_page"):
            self._page.close()

    # Running

    def run(self) -> Exit:
        """KVM_RUN (api.rst 4.10): run the guest until it needs something, and return what.

        If the last exit has a `reply`, call that first. Raises `IoctlError`: EBADF after `close()`, EFAULT for guest
        memory that is not mapped here, EINVAL for contradictory state.
        """
        self._thread = threading.get_native_id()
        if libc_ioctl(self.fd, _RUN, None) >= 0:
            return decode(self._page)
        return self._stopped(ctypes.get_errno())

    def _stopped(self, code: int) -> Exit:
        # EAGAIN: a CPU that waits to be started was woken and has nothing to do yet.
        if code in (errno.EINTR, errno.EAGAIN):
            self.immediate_exit = False
            return Interrupted()
        if code == errno.EFAULT and exit_reason(self._page) == ExitReason.MEMORY_FAULT:
            return decode(self._page)
        raise ioctl_error(code, requests.RUN.name, {"vcpu": self.id, "fd": self.fd})

    def kick(self) -> None:
        """Make the present `run()`, or else the next one, return `Interrupted`. For any thread.

        Change the state that the vCPU's thread is to see *before* the kick. `run()` forgets kicks only just
        before it returns `Interrupted`, so a thread that looks at that state whenever it gets one misses
        nothing: a kick is never lost, at most several become one. A closed vCPU has nothing to be kicked out of.
        Needs `install_kick_handler`.
        """
        if self.closed:
            return
        self.immediate_exit = True
        if self._thread:
            kick_thread(self._thread)

    @property
    def immediate_exit(self) -> bool:
        """Whether the next `run()` completes the last access and returns `Interrupted` (api.rst 5)."""
        return bool(self._page[_IMMEDIATE_EXIT])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._page[_IMMEDIATE_EXIT] = value

    @property
    def request_interrupt_window(self) -> bool:
        """Whether `run()` is to return `IrqWindowOpen` once `interrupt` may be used (no irqchip)."""
        return bool(self._page[_REQUEST_INTERRUPT_WINDOW])

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self._page[_REQUEST_INTERRUPT_WINDOW] = value

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether, at the last exit, the guest would have taken an interrupt. Without irqchip only."""
        return bool(self._page[_READY_FOR_INTERRUPT])

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT (api.rst 4.16): queue an external interrupt. ENXIO: there is an in-kernel irqchip."""
        invoke(self.fd, requests.INTERRUPT, structs.Interrupt(vector))

    def coalesced_ring(self, page: int) -> CoalescedRing:
        """Return the ring of coalesced writes, which the VM's vCPUs share. It is valid until this vCPU is closed.

        `page` is the VM's answer to KVM_CAP_COALESCED_MMIO: where in this mapping it lies (api.rst 4.5 and 4.116).
        """
        if not 0 < page < len(self._page) // PAGE:
            raise InvalidArgumentError(f"page {page} is no ring of coalesced writes: the mapping ends before it")
        ring = CoalescedRing(memoryview(self._page)[page * PAGE : (page + 1) * PAGE])
        self._rings.append(ring)
        return ring

    # Registers

    def get_regs(self) -> structs.Regs:
        """KVM_GET_REGS (api.rst 4.11): the general registers, as a copy."""
        regs = structs.Regs()
        invoke(self.fd, requests.GET_REGS, regs)
        return regs

    def set_regs(self, regs: structs.Regs) -> None:
        """KVM_SET_REGS (api.rst 4.12). Mind that bit 1 of `rflags` is always set."""
        invoke(self.fd, requests.SET_REGS, regs)

    def get_sregs(self) -> structs.Sregs:
        """KVM_GET_SREGS (api.rst 4.13): segment, table and control registers, as a copy."""
        sregs = structs.Sregs()
        invoke(self.fd, requests.GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: structs.Sregs) -> None:
        """KVM_SET_SREGS (api.rst 4.14). EINVAL: the control registers contradict each other."""
        invoke(self.fd, requests.SET_SREGS, sregs)

    def translate(self, address: int) -> int | None:
        """KVM_TRANSLATE (api.rst 4.15): where a linear address lies in guest-physical memory, None for nowhere."""
        translation = structs.Translation(address)
        invoke(self.fd, requests.TRANSLATE, translation)
        return int(translation.physical_address) if translation.valid else None

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS (api.rst 4.18): values by index. EINVAL, naming the index: KVM refuses one."""
        wanted = list(indices)
        buffer = self._msrs(requests.GET_MSRS, [(index, 0) for index in wanted])
        return dict(_MSR_ENTRY.iter_unpack(buffer.raw[_MSR_HEAD:]))

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_MSRS (api.rst 4.19), in the mapping's order; those before a refused one have been set."""
        self._msrs(requests.SET_MSRS, list(values.items()))

    def _msrs(self, request: Ioctl, entries: list[tuple[int, int]]) -> ctypes.Array[ctypes.c_char]:
        count = len(entries)
        data = b"".join((struct.pack("=I4x", count), *(_packed(request, *entry) for entry in entries)))
        buffer = ctypes.create_string_buffer(data, len(data))
        done = invoke(self.fd, request, buffer, nmsrs=count)
        if done < count:
            index, value = entries[done]
            raise ioctl_error(errno.EINVAL, request.name, {"index": index, "data": value})
        return buffer

    def get_cpuid2(self) -> Cpuid:
        """KVM_GET_CPUID2: what `set_cpuid2` set; the structure is that of api.rst 4.46."""
        return Cpuid.fetch(self.fd, requests.GET_CPUID2)

    def set_cpuid2(self, cpuid: Cpuid) -> None:
        """KVM_SET_CPUID2 (api.rst 4.20). Call it before long mode and before the first `run()`."""
        invoke(self.fd, requests.SET_CPUID2, ctypes.create_string_buffer(cpuid.pack()), nent=len(cpuid))

    def get_mp_state(self) -> MpState:
        """KVM_GET_MP_STATE (api.rst 4.38): whether the vCPU runs, and what it waits for."""
        state = structs.MpStateStruct()
        invoke(self.fd, requests.GET_MP_STATE, state)
        return MpState(state.mp_state)

    def set_mp_state(self, state: MpState) -> None:
        """KVM_SET_MP_STATE (api.rst 4.39): start the vCPU, or let it wait."""
        invoke(self.fd, requests.SET_MP_STATE, structs.MpStateStruct(int(state)))

    def get_lapic(self) -> structs.LapicState:
        """KVM_GET_LAPIC (api.rst 4.57). EINVAL: there is no in-kernel irqchip."""
        lapic = structs.LapicState()
        invoke(self.fd, requests.GET_LAPIC, lapic)
        return lapic

    def set_lapic(self, lapic: structs.LapicState) -> None:
        """KVM_SET_LAPIC (api.rst 4.58): replace the registers of the local APIC."""
        invoke(self.fd, requests.SET_LAPIC, lapic)

    def get_xsave(self) -> structs.Xsave:
        """KVM_GET_XSAVE (api.rst 4.42): FPU, SSE and AVX registers, as a copy; none that need more than 4 KiB (AMX)."""
        xsave = structs.Xsave()
        invoke(self.fd, requests.GET_XSAVE, xsave)
        return xsave

    def set_xsave(self, xsave: structs.Xsave) -> None:
        """KVM_SET_XSAVE (api.rst 4.43). EINVAL: it names features that the CPU has not."""
        invoke(self.fd, requests.SET_XSAVE, xsave)

    def get_xcrs(self) -> structs.Xcrs:
        """KVM_GET_XCRS (api.rst 4.44): the extended control registers, as a copy."""
        xcrs = structs.Xcrs()
        invoke(self.fd, requests.GET_XCRS, xcrs)
        return xcrs

    def set_xcrs(self, xcrs: structs.Xcrs) -> None:
        """KVM_SET_XCRS (api.rst 4.45). EINVAL: XCR0 turns features on that the CPU has not."""
        invoke(self.fd, requests.SET_XCRS, xcrs)

    def get_vcpu_events(self) -> structs.VcpuEvents:
        """KVM_GET_VCPU_EVENTS (api.rst 4.31): exceptions, interrupts and NMIs that are on their way."""
        events = structs.VcpuEvents()
        invoke(self.fd, requests.GET_VCPU_EVENTS, events)
        return events

    def set_vcpu_events(self, events: structs.VcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS (api.rst 4.32). `set_regs` forgets exceptions, so it comes first."""
        invoke(self.fd, requests.SET_VCPU_EVENTS, events)

    def get_debugregs(self) -> structs.Debugregs:
        """KVM_GET_DEBUGREGS (api.rst 4.33): the debug registers, as a copy."""
        registers = structs.Debugregs()
        invoke(self.fd, requests.GET_DEBUGREGS, registers)
        return registers

    def set_debugregs(self, registers: structs.Debugregs) -> None:
        """KVM_SET_DEBUGREGS (api.rst 4.34)."""
        invoke(self.fd, requests.SET_DEBUGREGS, registers)

    def enable_cap(self, cap: int, *args: int) -> None:
        """KVM_ENABLE_CAP (api.rst 4.37) with up to four arguments: api.rst 6 lists a vCPU's."""
        invoke(self.fd, requests.ENABLE_CAP, structs.EnableCap(cap, 0, args))

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG (api.rst 4.87). `control`: 1 enable, 2 step, 1 << 16 and 17 breakpoints."""
        invoke(self.fd, requests.SET_GUEST_DEBUG, structs.GuestDebug(control, 0, tuple(debugreg)))

    def tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ (api.rst 4.56): the guest's clock rate. EIO: the host's clock is unstable."""
        return invoke(self.fd, requests.GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ (api.rst 4.55). EINVAL: the processor cannot scale the guest's clock."""
        invoke(self.fd, requests.SET_TSC_KHZ, khz, khz=khz)

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL (api.rst 4.78): tell the guest that it was paused. EINVAL: it does not use kvm-clock."""
        invoke(self.fd, requests.KVMCLOCK_CTRL)

    def stats(self) -> Stats:
        """KVM_GET_STATS_FD (api.rst 4.133): the kernel's own counters for this CPU; close them."""
        return Stats(invoke(self.fd, requests.GET_STATS_FD))


def _packed(request: Ioctl, index: int, data: int) -> bytes:
    try:
        return _MSR_ENTRY.pack(index, data)
    except struct.error as error:
        raise InvalidArgumentError(str(error), request.name, {"index": index, "data": data}) from None
