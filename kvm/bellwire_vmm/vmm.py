"""The machine: memory, vCPUs, a PCI bus, and the devices plugged into it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Self

from bellwire_vmm import guests
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import AddressConflictError, VmmError
from bellwire_vmm.guests.layout import RESULTS_END
from bellwire_vmm.machine import boot
from bellwire_vmm.machine.cpuid import cpuid_of
from bellwire_vmm.machine.memory import GuestMemory
from bellwire_vmm.machine.pci import CONFIG_ADDRESS, PciBus
from bellwire_vmm.machine.platform import Platform
from bellwire_vmm.machine.processor import Mark, Processor
from bellwire_vmm.machine.trouble import explain
from kvm_ioctls import Exit, Irqchip, Kvm, install_kick_handler
from vfio_user import Client

MAX_VCPUS = 8
MOST_MEMORY = 3 << 30
_TSS_PAGES = 0xFFFB_D000
_SWITCH_INTERVAL = 1e-5


class Request(Enum):
    """What a guest has asked of its machine."""

    POWER_OFF = "power off"
    RESET = "reset"


@dataclass(slots=True)
class RunResult:
    """How a run ended.

    ``code`` is what the guest wrote to its exit port, None if it never did; ``request`` what it asked of a board
    that takes such requests.
    """

    code: int | None = None
    request: Request | None = None
    text: str = ""
    marks: list[Mark] = field(default_factory=list)
    failure: str = ""
    runs: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the guest ended the run itself, and well."""
        return (self.code == 0 or self.request is Request.POWER_OFF) and not self.failure


class Machine:
    """A VM with ``memory`` bytes of RAM, ``vcpus`` vCPUs, an in-kernel irqchip, and nothing plugged in yet.

    Make the first one in the main thread: only there can the signal that stops a vCPU be prepared.
    """

    def __init__(
        self, memory: int = 64 << 20, vcpus: int = 1, *, on_mark: Callable[[Mark], None] | None = None
    ) -> None:
        if not 1 <= vcpus <= MAX_VCPUS:
            raise VmmError(f"{vcpus} vCPUs: expected 1 to {MAX_VCPUS}")
        if not boot.LEAST_MEMORY <= memory <= MOST_MEMORY:
            raise VmmError(f"{memory:#x} bytes of memory: expected 2 MiB to 3 GiB")
        if threading.current_thread() is threading.main_thread():
            install_kick_handler()
        self.devices: list[ProxyDevice] = []
        self.on_mark = on_mark
        self.stopping = False
        self._done = threading.Event()
        self._result = RunResult()
        with ExitStack() as stack:
            self.memory = GuestMemory(memory)
            stack.callback(self.memory.close)
            kvm = stack.enter_context(Kvm.open())
            self.vm = stack.enter_context(kvm.create_vm())
            self.vm.set_tss_addr(_TSS_PAGES)
            self.vm.create_irqchip()
            self.platform = Platform(self.vm, self.memory)
            self.platform.slots.add(0, memory, self.memory.host_address)
            supported = kvm.supported_cpuid()
            self.bus = PciBus()
            self.platform.port_space.add(CONFIG_ADDRESS, 8, self.bus)
            self.processors: list[Processor] = []
            stack.callback(self._close_processors)
            for number in range(vcpus):
                vcpu = self.vm.create_vcpu(number)
                vcpu.set_cpuid2(cpuid_of(kvm, supported, number, vcpus))
                self.processors.append(Processor(vcpu, number, self.platform, self))
            self.platform.coalescing.begin(self.processors[0].vcpu)
            self._ioapic = self.vm.get_irqchip(Irqchip.IOAPIC)
            self._lapics = [each.vcpu.get_lapic() for each in self.processors]
            stack.callback(self._unplug_all)
            self._stack = stack.pop_all()

    def plug(
        self, client: Client, *, share_memory: bool = True, coalesced: Iterable[tuple[int, int, int]] = ()
    ) -> ProxyDevice:
        """Put the device behind ``client`` into the next free slot; the machine owns the client from now on.

        ``share_memory`` hands it the guest's RAM as a file descriptor; otherwise it must ask for what it
        wants by message. DeviceRefusedError: no guest can be shown such a device.

        ``coalesced`` are zones of memory BARs: (BAR, offset, size in bytes). A write to one costs the guest no
        exit, but waits for the next one of any vCPU; then all that wait go out as one posted message. So it is
        for registers that are written many at a time, and of whose effect no guest waits without reading.
        ZoneRefusedError: writes there cannot wait.
        """
        try:
            slot = self.bus.free_slot()
        except AddressConflictError:
            client.close()
            raise
        device = ProxyDevice(self.platform, client, slot, share_memory=share_memory, coalesced=coalesced)
        self.bus.insert(slot, device)
        self.devices.append(device)
        return device

    def unplug(self, device: ProxyDevice) -> None:
        """Take a device out: its registrations go, its connection is closed."""
        self.devices.remove(device)
        self.bus.remove(device.slot)
        device.close()

    def load(self, guest: str | Path | boot.Guest, parameters: bytes = b"") -> None:
        """Reset the machine and its devices, and put a guest into memory and all vCPUs at its start.

        ``guest`` is the name of one of our micro guests, the path of a flat image (both take ``parameters``), or
        something that knows how to start by itself. Model-specific registers keep what an earlier guest has put
        there, which micro guests leave alone.
        """
        if isinstance(guest, str | Path):
            guest = boot.MicroGuest(guests.image(guest), parameters)
        for device in self.devices:
            device.reset()
        self.vm.set_irqchip(self._ioapic)
        self.memory.clear(0, RESULTS_END)
        guest.place(self.memory, len(self.processors))
        for each, lapic in zip(self.processors, self._lapics, strict=True):
            each.vcpu.set_lapic(lapic)
            guest.start(each.vcpu, each.number, len(self.processors))

    def run(self, timeout: float | None = None) -> RunResult:
        """Run what was loaded until it writes to its exit port, breaks, or ``timeout`` seconds have passed.

        The result says which: a timeout and a broken vCPU are a ``failure``. What the kernel refuses is
        raised.
        """
        self._result, self.stopping = RunResult(), False
        self._done.clear()
        interval, begin = sys.getswitchinterval(), time.monotonic()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        try:
            with ThreadPoolExecutor(len(self.processors), "vcpu") as pool:
                threads = [pool.submit(each.run) for each in self.processors]
                for thread in threads:
                    thread.add_done_callback(lambda _: self._done.set())
                try:
                    in_time = self._done.wait(timeout)
                finally:
                    self.stop()
        finally:
            sys.setswitchinterval(interval)
        result = self._result
        result.runs = self.runs
        result.seconds = time.monotonic() - begin
        for thread in threads:
            thread.result()
        if not in_time:
            result.failure = f"the guest was still running after {timeout:g} s"
        return result

    def stop(self) -> None:
        """End the run from any thread."""
        self.stopping = True
        self._done.set()
        for each in self.processors:
            each.vcpu.kick()

    @property
    def runs(self) -> tuple[int, ...]:
        """How often KVM_RUN has returned, for each vCPU, since the machine was made."""
        return tuple(each.runs for each in self.processors)

    @property
    def tsc_khz(self) -> int:
        """Thousands of ticks of the guest's time stamp counter in a second."""
        return self.processors[0].vcpu.tsc_khz()

    def close(self) -> None:
        """Unplug everything and release the VM."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the processors tell (processor.Listener)

    def said(self, text: bytes) -> None:
        """Debug text from the guest; kept to the first 64 KiB."""
        if len(self._result.text) < 1 << 16:
            self._result.text += text.decode("latin-1")

    def left(self, code: int) -> None:
        """The guest has ended the run."""
        self._result.code = code
        self.stop()

    def marked(self, mark: Mark) -> None:
        """The guest has reached a mark."""
        self._result.marks.append(mark)
        if self.on_mark is not None:
            self.on_mark(mark)

    def broke(self, processor: Processor, reason: Exit) -> None:
        """A vCPU cannot go on: say where it stood."""
        self._result.failure = f"vCPU {processor.number} {explain(processor.vcpu, reason, self.memory)}"
        self.stop()

    # What a board tells

    def asked(self, request: Request) -> None:
        """The guest wants the machine off, or to start anew: either ends the run."""
        self._result.request = request
        self.stop()

    def _unplug_all(self) -> None:
        while self.devices:
            self.unplug(self.devices[-1])

    def _close_processors(self) -> None:
        for each in self.processors:
            each.close()
