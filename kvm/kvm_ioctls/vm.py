"""A virtual machine: its memory, its interrupt controllers and its doorbells."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from enum import IntFlag

from . import requests, structs
from .errors import InvalidArgumentError, IoctlError
from .handle import Handle
from .ioctl import invoke
from .ioregion import IoRegion
from .routing import Route, pack_routes
from .stats import Stats
from .vcpu import Vcpu


class MemoryFlags(IntFlag):
    """KVM_MEM_*: how a memory region behaves."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2


class IoEventFlags(IntFlag):
    """KVM_IOEVENTFD_FLAG_*: which writes ring, and whether a doorbell is added or removed."""

    DATAMATCH = 1
    PIO = 2
    DEASSIGN = 4
    POST_WRITE = 32
    """Of a proposal that is not merged: KVM also stores the value."""


class IrqfdFlags(IntFlag):
    """KVM_IRQFD_FLAG_*: whether an irqfd is removed, and whether its line is level-triggered."""

    DEASSIGN = 1
    RESAMPLE = 2


class Vm(Handle):
    """One guest machine, made by `Kvm.create_vm`.

    Methods raise `IoctlError` with the kernel's errno; the docstrings name those worth handling.
    """

    def __init__(self, fd: int, vcpu_mmap_size: int):
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._has_ioregion: bool | None = None
        self._has_post_write: bool | None = None

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION (api.rst 4.4), as this VM answers it: more exact than `Kvm.check_extension`."""
        return invoke(self.fd, requests.CHECK_EXTENSION, int(cap), cap=int(cap))

    def enable_cap(self, cap: int, *args: int) -> None:
        """KVM_ENABLE_CAP (api.rst 4.37) with up to four arguments: api.rst 7 lists a VM's."""
        invoke(self.fd, requests.ENABLE_CAP, structs.EnableCap(cap, 0, args))

    def stats(self) -> Stats:
        """KVM_GET_STATS_FD (api.rst 4.133): the kernel's own counters for this VM; close them."""
        return Stats(invoke(self.fd, requests.GET_STATS_FD))

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU (api.rst 4.7). EEXIST: the id is taken. EINVAL: the id is out of range."""
        return Vcpu(invoke(self.fd, requests.CREATE_VCPU, vcpu_id, id=vcpu_id), vcpu_id, self._vcpu_mmap_size)

    # Memory

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION (api.rst 4.35): show this process's memory to the guest.

        Addresses and the size, in bytes, are multiples of the page size; `flags` are `MemoryFlags`. The
        memory must stay mapped until the slot is deleted. EEXIST: it overlaps another slot.
        """
        region = structs.UserspaceMemoryRegion(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        invoke(self.fd, requests.SET_USER_MEMORY_REGION, region)

    def delete_memory_region(self, slot: int) -> None:
        """Delete a memory slot. When this returns, no vCPU touches its memory any more."""
        self.set_user_memory_region(slot, 0, 0, 0)

    def get_dirty_log(self, slot: int, pages: int) -> bytes:
        """KVM_GET_DIRTY_LOG (api.rst 4.8): which pages of a slot were written since the last call, and forget them.

        One bit a page, the lowest first, in whole 64-bit words. The slot has `pages` pages and LOG_DIRTY_PAGES. What
        this process writes itself, by its own mapping, is not there. ENOENT: the slot logs nothing.
        """
        if pages <= 0:
            raise InvalidArgumentError(f"a slot of {pages} pages", "KVM_GET_DIRTY_LOG", {"slot": slot})
        bitmap = (ctypes.c_uint64 * -(-pages // 64))()
        invoke(self.fd, requests.GET_DIRTY_LOG, structs.DirtyLog(slot, 0, ctypes.addressof(bitmap)))
        return bytes(bitmap)

    def set_tss_addr(self, address: int) -> None:
        """KVM_SET_TSS_ADDR (api.rst 4.36): three pages that Intel CPUs need for real mode, below 4 GiB."""
        invoke(self.fd, requests.SET_TSS_ADDR, address, address=address)

    def set_identity_map_addr(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR (api.rst 4.40): one more such page; before any vCPU is made."""
        invoke(self.fd, requests.SET_IDENTITY_MAP_ADDR, ctypes.c_uint64(address), address=address)

    # Interrupts

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP (api.rst 4.24): two PICs, an IOAPIC, a local APIC in each later vCPU."""
        invoke(self.fd, requests.CREATE_IRQCHIP)

    def get_irqchip(self, irqchip: int) -> structs.IrqchipState:
        """KVM_GET_IRQCHIP (api.rst 4.26): the state of one controller, an `Irqchip`, for `set_irqchip`."""
        state = structs.IrqchipState(irqchip)
        invoke(self.fd, requests.GET_IRQCHIP, state)
        return state

    def set_irqchip(self, state: structs.IrqchipState) -> None:
        """KVM_SET_IRQCHIP (api.rst 4.27): put a controller back into a state that `get_irqchip` returned."""
        invoke(self.fd, requests.SET_IRQCHIP, state)

    def create_pit2(self) -> None:
        """KVM_CREATE_PIT2 (api.rst 4.71): the i8254 timer. Needs the irqchip."""
        invoke(self.fd, requests.CREATE_PIT2, structs.PitConfig())

    def get_pit2(self) -> structs.PitState2:
        """KVM_GET_PIT2 (api.rst 4.72): the state of the i8254. ENXIO: there is none."""
        state = structs.PitState2()
        invoke(self.fd, requests.GET_PIT2, state)
        return state

    def set_pit2(self, state: structs.PitState2) -> None:
        """KVM_SET_PIT2 (api.rst 4.73): put the i8254 into a state that `get_pit2` returned."""
        invoke(self.fd, requests.SET_PIT2, state)

    def get_clock(self) -> structs.ClockData:
        """KVM_GET_CLOCK (api.rst 4.29): what the guest's kvm-clock says now."""
        clock = structs.ClockData()
        invoke(self.fd, requests.GET_CLOCK, clock)
        return clock

    def set_clock(self, nanoseconds: int) -> None:
        """KVM_SET_CLOCK (api.rst 4.30): let the guest's kvm-clock go on from a value that `get_clock` returned."""
        invoke(self.fd, requests.SET_CLOCK, structs.ClockData(nanoseconds))

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE (api.rst 4.25): raise or lower an interrupt line."""
        invoke(self.fd, requests.IRQ_LINE, structs.IrqLevel(gsi, int(level)))

    def irqfd(self, fd: int, gsi: int, resample_fd: int | None = None) -> None:
        """KVM_IRQFD (api.rst 4.75): each write to the eventfd `fd` triggers `gsi`, without this process.

        With `resample_fd` the line is level-triggered: it stays asserted until the guest acknowledges it, and
        KVM then signals `resample_fd`, upon which a device that still wants attention writes `fd` again.
        EBUSY: `fd` is bound already. EINVAL: a descriptor is not an eventfd, or there is no irqchip.
        """
        resample = resample_fd is not None
        flags = IrqfdFlags.RESAMPLE if resample else IrqfdFlags(0)
        invoke(self.fd, requests.IRQFD, structs.Irqfd(fd, gsi, int(flags), resample_fd or 0))

    def irqfd_deassign(self, fd: int, gsi: int) -> None:
        """Undo `irqfd`: from then on no write to `fd` reaches the guest. Undoing twice is no error."""
        invoke(self.fd, requests.IRQFD, structs.Irqfd(fd, gsi, int(IrqfdFlags.DEASSIGN)))

    def set_gsi_routing(self, routes: Sequence[Route]) -> None:
        """KVM_SET_GSI_ROUTING (api.rst 4.52): replace the table. `default_routes` returns the first one."""
        table = ctypes.create_string_buffer(pack_routes(routes))
        invoke(self.fd, requests.SET_GSI_ROUTING, table, nr=len(routes))

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI (api.rst 4.70): inject an MSI; return whether the guest took it (else: masked)."""
        message = structs.Msi(address & 0xFFFF_FFFF, address >> 32, data)
        return invoke(self.fd, requests.SIGNAL_MSI, message) > 0

    # Doorbells

    def ioeventfd(
        self,
        fd: int,
        addr: int,
        size: int = 0,
        datamatch: int | None = None,
        pio: bool = False,
        *,
        ccw: bool = False,
        post_addr: int | None = None,
    ) -> None:
        """KVM_IOEVENTFD (api.rst 4.59): a guest's write to `addr` adds one to the eventfd `fd`, with no exit.

        `size` is the width of the write in bytes: 1, 2, 4 or 8, or 0 for any, which is the fastest. With
        `datamatch` only that value rings, and `size` must be given; others exit as usual. `pio` means that
        `addr` is an I/O port. Nothing rings where `addr` lies in a writable memory slot.
        EEXIST (`ConflictError`): a doorbell for the same write is registered already.

        With `post_addr` KVM first stores the value there, in `size` bytes of this process's memory. `size` must
        be given. EINVAL: this kernel cannot do that; `has_post_write` tells.
        """
        self._ioeventfd(fd, addr, size, datamatch, pio, ccw, IoEventFlags(0), post_addr)

    def ioeventfd_deassign(
        self,
        fd: int,
        addr: int,
        size: int = 0,
        datamatch: int | None = None,
        pio: bool = False,
        *,
        ccw: bool = False,
    ) -> None:
        """Undo `ioeventfd`, given the same arguments. ENOENT (`NotFoundError`): there is no such doorbell."""
        self._ioeventfd(fd, addr, size, datamatch, pio, ccw, IoEventFlags.DEASSIGN)

    def _ioeventfd(
        self,
        fd: int,
        addr: int,
        size: int,
        datamatch: int | None,
        pio: bool,
        ccw: bool,
        flags: IoEventFlags,
        post_addr: int | None = None,
    ) -> None:
        if pio:
            flags |= IoEventFlags.PIO
        if datamatch is not None:
            flags |= IoEventFlags.DATAMATCH
        asked = {"addr": addr, "len": size, "fd": fd, "flags": int(flags)}
        if datamatch is not None:
            asked["datamatch"] = datamatch
            if size and datamatch >> 8 * size:
                raise InvalidArgumentError(f"datamatch does not fit in {size} bytes", "KVM_IOEVENTFD", asked)
        if ccw:
            # KVM on x86 accepts the flag silently, and would listen at a memory address instead.
            raise InvalidArgumentError("CCW doorbells exist on s390 only", "KVM_IOEVENTFD", asked)
        if post_addr is None:
            invoke(self.fd, requests.IOEVENTFD, structs.Ioeventfd(datamatch or 0, addr, size, fd, int(flags)), **asked)
        else:
            flags |= IoEventFlags.POST_WRITE
            posting = structs.IoeventfdPosting(datamatch or 0, addr, size, fd, int(flags), post_addr)
            invoke(self.fd, requests.IOEVENTFD, posting, **asked, post_addr=post_addr)

    def has_post_write(self) -> bool:
        """Return whether this kernel can store the value of a write that rings an ioeventfd (`post_addr`).

        There is no capability number for it. This tries to register a descriptor that does not exist: a kernel that
        does not know the flag answers EINVAL before it looks at the descriptor, and one that does EBADF.
        """
        if self._has_post_write is None:
            place = ctypes.c_uint64()
            try:
                self.ioeventfd(-1, (1 << 52) - 8, 8, post_addr=ctypes.addressof(place))
            except IoctlError as error:
                self._has_post_write = error.errno == errno.EBADF
            else:
                raise AssertionError("KVM_IOEVENTFD has taken a descriptor that does not exist")
        return self._has_post_write

    def register_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO (api.rst 4.116): keep the guest's writes to `size` bytes at `addr` in a ring.

        Writes that lie wholly in this zone do not exit while the ring has room. After each return of `run`, the caller
        takes them out with `Vcpu.coalesced_ring`. Reads exit as ever. `pio` makes it a zone of I/O ports.
        ENXIO: this kernel has no such ring. ENOSPC: there are too many zones and doorbells.
        """
        if not 0 < size < 1 << 32:
            asked = {"addr": addr, "size": size, "pio": int(pio)}
            raise InvalidArgumentError("expected 1 byte to 4 GiB - 1", "KVM_REGISTER_COALESCED_MMIO", asked)
        invoke(self.fd, requests.REGISTER_COALESCED_MMIO, structs.CoalescedMmioZone(addr, size, int(pio)))

    def unregister_coalesced_mmio(self, addr: int, size: int, *, pio: bool = False) -> None:
        """Undo `register_coalesced_mmio`: remove all zones that hold these bytes. It is no error if there is none.

        After this KVM puts no more writes for them into the ring. Writes that are in it stay.
        """
        invoke(self.fd, requests.UNREGISTER_COALESCED_MMIO, structs.CoalescedMmioZone(addr, size, int(pio)))

    def has_ioregion(self) -> bool:
        """Return whether this kernel has KVM_SET_IOREGION. It tries to remove a region that does not exist.

        There is no capability number for it: each one that the proposal used means something else today. A kernel
        without the request answers ENOTTY, one with an older proposal EINVAL, and one that has it ENOENT.
        """
        if self._has_ioregion is None:
            probe = IoRegion((1 << 52) - 8, 8, 0, read_fd=-1, write_fd=-1)
            try:
                self.ioregion_deassign(probe)
            except IoctlError as error:
                self._has_ioregion = error.errno not in (errno.ENOTTY, errno.EINVAL)
            else:
                self._has_ioregion = True
        return self._has_ioregion

    def set_ioregion(self, region: IoRegion) -> None:
        """KVM_SET_IOREGION: let a socket serve a range of guest memory or I/O ports.

        ENOTTY (`UnsupportedError`): this kernel has no ioregionfds. EEXIST (`ConflictError`): it overlaps
        another region or an ioeventfd.
        """
        invoke(self.fd, requests.SET_IOREGION, region.struct())

    def ioregion_deassign(self, region: IoRegion) -> None:
        """Undo `set_ioregion`; address, size and `pio` identify it. ENOENT (`NotFoundError`): not there."""
        invoke(self.fd, requests.SET_IOREGION, region.struct(deassign=True))
