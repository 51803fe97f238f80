"""The machine: memory, vCPUs, a PCI bus, and the devices plugged into it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
from bellwire_vmm.machine.part import Part
from bellwire_vmm.machine.pci import CONFIG_ADDRESS, PciBus
from bellwire_vmm.machine.platform import Platform
from bellwire_vmm.machine.processor import Mark, Processor
from bellwire_vmm.machine.trouble import explain
from kvm_ioctls import Exit, Irqchip, Kvm, KvmError, install_kick_handler
from vfio_user import Client

MAX_VCPUS = 8
MOST_MEMORY = 3 << 30
_TSS_PAGES = 0xFFFB_D000
_SWITCH_INTERVAL = 1e-5


class Request(Enum):
    """What a guest can ask of its machine: to power off, or to reset."""

    POWER_OFF = "power off"
    RESET = "reset"


@dataclass(slots=True)
class RunResult:
    """How a run ended.

    ``code`` is what the guest wrote to its exit port; None if it did not. ``request`` is what it asked of a board; None
    without a board, or if it asked for nothing.
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
        """Whether the guest ended the run itself, without reporting an error."""
        return (self.code == 0 or self.request is Request.POWER_OFF) and not self.failure


class Machine:
    """A VM with ``memory`` bytes of RAM, ``vcpus`` vCPUs, an in-kernel irqchip, and no devices yet.

    Make the first one in the main thread: only there can Python install the signal handler that stops a vCPU.
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
        self._tsc_khz = 0
        with ExitStack() as stack:
            self.memory = GuestMemory(memory)
            stack.callback(self.memory.close)
            kvm = stack.enter_context(Kvm.open())
            self.vm = stack.enter_context(kvm.create_vm())
            self.vm.set_tss_addr(_TSS_PAGES)
            self.vm.create_irqchip()
            self.platform = Platform(self.vm, self.memory)
            self.ram_slot = self.platform.slots.add(0, memory, self.memory.host_address)
            supported = kvm.supported_cpuid()
            self.cpuid = cpuid_of(kvm, supported, 0, vcpus)
            self.bus = PciBus()
            self.platform.port_space.add(CONFIG_ADDRESS, 8, self.bus)
            self.parts: dict[str, Part] = {"pci": self.bus}
            """What moves with the machine beside memory, vCPUs and devices, by name. A board adds its own."""
            self.processors: list[Processor] = []
            stack.callback(self._close_processors)
            for number in range(vcpus):
                vcpu = self.vm.create_vcpu(number)
                vcpu.set_cpuid2(self.cpuid if number == 0 else cpuid_of(kvm, supported, number, vcpus))
                self.processors.append(Processor(vcpu, number, self.platform, self))
            with suppress(KvmError):
                self._tsc_khz = self.processors[0].vcpu.tsc_khz()  # now: a vCPU that runs does not answer
            self.platform.coalescing.begin(self.processors[0].vcpu)
            self._ioapic = self.vm.get_irqchip(Irqchip.IOAPIC)
            self._lapics = [each.vcpu.get_lapic() for each in self.processors]
            stack.callback(self._unplug_all)
            self._stack = stack.pop_all()

    def plug(
        self, client: Client, *, share_memory: bool = True, coalesced: Iterable[tuple[int, int, int]] = ()
    ) -> ProxyDevice:
        """Put the device behind ``client`` into the next free slot. The machine owns the client from now on.

        With ``share_memory`` the device gets the guest's RAM as a file descriptor. Without it, the device must read and
        write RAM by message. Raises DeviceRefusedError for a device that cannot be shown to a guest.

        ``coalesced`` are zones of memory BARs: (BAR, offset, size in bytes). A write to a zone costs the guest no exit,
        but waits for the next exit of any vCPU. Then all waiting writes go out as one posted message. Use it for
        registers that are written many at a time, if the guest does not wait for their effect without a read. Raises
        ZoneRefusedError for a zone whose writes cannot wait.
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
        """Take a device out: remove its registrations, and close its connection."""
        self.devices.remove(device)
        self.bus.remove(device.slot)
        device.close()

    def load(self, guest: str | Path | boot.Guest, parameters: bytes = b"") -> None:
        """Reset the machine and its devices, put a guest into memory, and set all vCPUs to its start.

        ``guest`` is the name of one of our micro guests, the path of a flat image (both take ``parameters``), or a
        `boot.Guest`. Model-specific registers keep the values of an earlier guest; micro guests do not change any.
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
        """Run the loaded guest until it writes to its exit port, a vCPU cannot go on, or ``timeout`` seconds pass.

        The result says which; the last two set ``failure``. Raises KvmError if the kernel refuses a request.
        """
        self._result, self.stopping = RunResult(), False
        self._done.clear()
        return self.resume(timeout)

    def resume(self, timeout: float | None = None) -> RunResult:
        """Run a guest that is loaded, or has been stopped by `stop`, or was restored. The rest is as for `run`.

        A `stop` that came before, and has not ended a run, ends this one. The result is that of the whole run since the
        machine was made; ``seconds`` are the last part's.
        """
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
            self.stopping = False
            self._done.clear()
        result = self._result
        result.runs = self.runs
        result.seconds = time.monotonic() - begin
        for thread in threads:
            thread.result()
        if timeout is not None and not in_time:
            result.failure = f"the guest was still running after {round(timeout, 2):g} s"
        return result

    def stop(self) -> None:
        """End the run, or else the next `resume`. Any thread may call this."""
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
        """The frequency of the guest's time stamp counter, in kHz. Raises VmmError if the host's clock is unstable."""
        if not self._tsc_khz:
            raise VmmError("KVM does not tell how fast the time stamp counter runs: the host's clock is unstable")
        return self._tsc_khz

    def close(self) -> None:
        """Unplug all devices and release the VM."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Called by the processors (processor.Listener)

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

    # Called by a board

    def asked(self, request: Request) -> None:
        """The guest powers the machine off, or resets it: either ends the run."""
        self._result.request = request
        self.stop()

    def _unplug_all(self) -> None:
        while self.devices:
            self.unplug(self.devices[-1])

    def _close_processors(self) -> None:
        for each in self.processors:
            each.close()
