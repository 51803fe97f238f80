"""A device's sub-regions: each is registered with KVM at its BAR's address, or relayed, or served by messages."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.relay import Relay, RelayedRegion
from bellwire_vmm.device.shadow import bell_of
from bellwire_vmm.errors import DeviceRefusedError
from kvm_ioctls import IoRegion, KvmError, Vm
from vfio_user import IoEventFd, IoRegionFd, Mechanism, ShadowBell, ShadowIoEventFd, SubRegion, VfioUserError

IN_KERNEL = frozenset(
    (Mechanism.IOEVENTFD, Mechanism.IOEVENTFD_DATAMATCH, Mechanism.IOREGIONFD_KERNEL, Mechanism.SHADOW_KERNEL)
)
"""The mechanisms by which a write does not exit, once KVM knows the address."""


class Route(NamedTuple):
    """How a guest's write to a sub-region reaches its device. For REGION_WRITE, ``reason`` says why."""

    bar: int
    offset: int
    size: int
    mechanism: Mechanism
    reason: str = ""


class Count:
    """How many writes to one address have exited to the VMM."""

    __slots__ = ("exits",)

    def __init__(self) -> None:
        self.exits = 0


@dataclass(slots=True)
class Registration:
    """A sub-region of ``bar``. ``registered`` is the BAR's address at which KVM knows it; None if it does not."""

    bar: Bar
    region: SubRegion
    mechanism: Mechanism
    counted: Count | RelayedRegion
    reason: str = ""
    registered: int | None = None
    bell: ShadowBell | None = None


class Standing(NamedTuple):
    """The state of a sub-region.

    ``address`` is where it is registered with KVM; None if it is not. ``exits`` is how many accesses to it have exited.
    """

    route: Route
    address: int | None
    exits: int


class Registrations:
    """All sub-regions of one device. Owns their file descriptors."""

    def __init__(self, vm: Vm, bars: Iterable[tuple[Bar, list[SubRegion]]]) -> None:
        self._vm = vm
        self._registrations: list[Registration] = []
        self._relays: dict[int, Relay] = {}
        self._fds: set[int] = set()
        self.relayed: dict[int, list[RelayedRegion]] = {}
        self.shadows: dict[int, dict[tuple[int, int], ShadowBell]] = {}
        """The shadow doorbells of each BAR that the VMM rings itself, by offset and size."""
        self.counts: dict[int, dict[int, Count]] = {}
        taken = list(bars)
        for _, regions in taken:
            self._fds |= descriptors(regions)
        try:
            self._registrations += [self._choose(bar, region) for bar, regions in taken for region in regions]
        except (DeviceRefusedError, VfioUserError):
            self.close()
            raise

    def routes(self) -> list[Route]:
        """The route of each sub-region, in the device's order."""
        return [
            Route(each.bar.index, each.region.offset, each.region.size, *self._standing(each))
            for each in self._registrations
        ]

    def standings(self) -> list[Standing]:
        """The state of each sub-region, in the device's order."""
        standings = []
        for route, each in zip(self.routes(), self._registrations, strict=True):
            known = each.registered is not None and route.mechanism in IN_KERNEL
            address = each.bar.address + each.region.offset if known else None
            standings.append(Standing(route, address, each.counted.exits))
        return standings

    def attach(self, bar: Bar) -> None:
        """Register the sub-regions of ``bar``: it is mapped at its address now."""
        for each in self._registrations:
            if each.bar is bar and each.registered is None:
                try:
                    self._register(each, bar.address)
                except KvmError as error:
                    each.reason = error.strerror or str(error)
                else:
                    each.registered, each.reason = bar.address, ""

    def detach(self, bar: Bar) -> None:
        """Remove the registrations of ``bar``: it is no longer mapped."""
        for each in self._registrations:
            if each.bar is bar and each.registered is not None:
                base, each.registered = each.registered, None
                self._unregister(each, base)

    def close(self) -> None:
        """Remove all registrations, and close the descriptors."""
        for each in self._registrations:
            self.detach(each.bar)
            if each.bell is not None:
                each.bell.close()
        for relay in self._relays.values():
            relay.hang_up()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _choose(self, bar: Bar, region: SubRegion) -> Registration:
        if region.pio != bar.ports:
            kinds = "I/O ports", "memory"
            said, is_ = kinds if region.pio else kinds[::-1]
            where = f"BAR{bar.index}+{region.offset:#x}"
            raise DeviceRefusedError(f"the sub-region at {where} says {said}, but its BAR is {is_}")
        if isinstance(region, IoEventFd):
            mechanism = Mechanism.IOEVENTFD if region.datamatch is None else Mechanism.IOEVENTFD_DATAMATCH
            return Registration(bar, region, mechanism, self._count(bar, region))
        if isinstance(region, ShadowIoEventFd):
            return self._shadow(bar, region)
        in_kernel = self._vm.has_ioregion()
        if not in_kernel and region.fd not in self._relays:
            self._relays[region.fd] = Relay(region.fd)
        relayed = RelayedRegion(region, self._relays.get(region.fd))
        self.relayed.setdefault(bar.index, []).append(relayed)
        mechanism = Mechanism.IOREGIONFD_KERNEL if in_kernel else Mechanism.IOREGIONFD_RELAY
        return Registration(bar, region, mechanism, relayed)

    def _shadow(self, bar: Bar, region: ShadowIoEventFd) -> Registration:
        in_kernel = self._vm.has_post_write()
        bell, why = bell_of(region, in_kernel=in_kernel)
        mechanism = Mechanism.SHADOW_KERNEL if in_kernel else Mechanism.SHADOW_RELAY
        if bell is not None and not in_kernel:
            self.shadows.setdefault(bar.index, {})[region.offset, region.size] = bell
        return Registration(bar, region, mechanism, self._count(bar, region), why, bell=bell)

    def _count(self, bar: Bar, region: SubRegion) -> Count:
        return self.counts.setdefault(bar.index, {}).setdefault(region.offset, Count())

    def _standing(self, registration: Registration) -> tuple[Mechanism, str]:
        if registration.mechanism is Mechanism.IOREGIONFD_RELAY and not self._relays[registration.region.fd].alive:
            return Mechanism.REGION_WRITE, "the device closed its ioregionfd"
        return (Mechanism.REGION_WRITE, registration.reason) if registration.reason else (registration.mechanism, "")

    def _register(self, registration: Registration, base: int) -> None:
        region = registration.region
        if isinstance(region, IoEventFd):
            where = base + region.offset
            self._vm.ioeventfd(region.fd, where, region.size, region.datamatch, region.pio, ccw=region.ccw)
        elif isinstance(region, ShadowIoEventFd):
            if registration.mechanism is Mechanism.SHADOW_KERNEL and registration.bell is not None:
                where, post = base + region.offset, registration.bell.address
                self._vm.ioeventfd(region.fd, where, region.size, region.datamatch, region.pio, post_addr=post)
        elif registration.mechanism is Mechanism.IOREGIONFD_KERNEL and isinstance(region, IoRegionFd):
            self._vm.set_ioregion(_kernel_region(region, base))

    def _unregister(self, registration: Registration, base: int) -> None:
        region = registration.region
        in_kernel = registration.mechanism is Mechanism.SHADOW_KERNEL and registration.bell is not None
        if isinstance(region, IoEventFd) or (isinstance(region, ShadowIoEventFd) and in_kernel):
            where = base + region.offset
            self._vm.ioeventfd_deassign(region.fd, where, region.size, region.datamatch, region.pio)
        elif registration.mechanism is Mechanism.IOREGIONFD_KERNEL and isinstance(region, IoRegionFd):
            self._vm.ioregion_deassign(_kernel_region(region, base))


def descriptors(regions: Iterable[SubRegion]) -> set[int]:
    """The file descriptors of the sub-regions, each once: several sub-regions may share one."""
    found = set()
    for region in regions:
        found.add(region.fd)
        if isinstance(region, ShadowIoEventFd):
            found.add(region.shadow_fd)
    return found


def _kernel_region(region: IoRegionFd, base: int) -> IoRegion:
    return IoRegion(
        base + region.offset,
        region.size,
        region.user_data,
        read_fd=region.fd,
        write_fd=region.fd,
        pio=region.pio,
        posted_writes=region.posted_writes,
    )
