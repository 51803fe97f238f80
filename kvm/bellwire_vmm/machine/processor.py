"""A vCPU and the thread that runs it. Every return of KVM_RUN is counted and handled here."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from bellwire_vmm.machine.platform import Platform
from kvm_ioctls import Exit, Interrupted, IoIn, IoOut, MmioRead, MmioWrite, Vcpu

PORT_TEXT, PORT_EXIT, PORT_MARK = 0xE9, 0xF4, 0xF5


class Mark(NamedTuple):
    """A guest's write to ``PORT_MARK``, with the vCPU's counters at that time.

    ``runs`` counts the returns of KVM_RUN, including the one for this mark. ``mmio_exits`` and ``io_exits`` are the
    kernel's counters, read while the mark is handled.
    """

    vcpu: int
    value: int
    runs: int
    mmio_exits: int
    io_exits: int


class Listener(Protocol):
    """What a processor calls when its guest writes to the VMM's ports, or cannot go on."""

    stopping: bool

    def said(self, text: bytes) -> None:
        """The guest has written debug text."""

    def left(self, code: int) -> None:
        """The guest has ended the run with ``code``."""

    def marked(self, mark: Mark) -> None:
        """The guest has reached a mark."""

    def broke(self, processor: Processor, reason: Exit) -> None:
        """The vCPU cannot go on, for ``reason``."""


class Processor:
    """Runs one vCPU until its listener stops the run, or the vCPU cannot go on."""

    def __init__(self, vcpu: Vcpu, number: int, platform: Platform, listener: Listener) -> None:
        self.vcpu = vcpu
        self.number = number
        self.runs = 0
        self.stats = vcpu.stats()
        self._memory = platform.memory_space
        self._ports = platform.port_space
        self._coalescing = platform.coalescing
        self._listener = listener

    def run(self) -> None:
        """The body of the vCPU's thread. Returns when the run ends. Raises KvmError if the kernel refuses a request."""
        try:
            self._run()
        except BaseException:
            self._complete()
            raise

    def _run(self) -> None:
        # KVM returns Interrupted only when the last access is complete (api.rst 5), which one of several fragments may
        # be. So a run ends there alone, and the vCPU's state can be read and set.
        run, memory, coalescing, listener = self.vcpu.run, self._memory, self._coalescing, self._listener
        while True:
            reason = run()
            self.runs += 1
            if coalescing.active:
                coalescing.drain()
            match reason:
                case MmioWrite():
                    memory.write(reason.addr, reason.data)
                case MmioRead():
                    reason.reply(memory.read(reason.addr, reason.size))
                case IoOut():
                    for start in range(0, reason.size * reason.count, reason.size):
                        self._out(reason.port, reason.data[start : start + reason.size])
                case IoIn():
                    ports = (self._ports.read(reason.port, reason.size) for _ in range(reason.count))
                    reason.reply(b"".join(ports))
                case Interrupted():
                    if listener.stopping:
                        return
                case _:
                    listener.broke(self, reason)
                    self._complete()
                    return

    def close(self) -> None:
        """Close the vCPU; its thread must have ended."""
        self.stats.close()
        self.vcpu.close()

    def _complete(self) -> None:
        """Let KVM finish the last access of a vCPU that cannot go on; deliver waiting writes."""
        self.vcpu.immediate_exit = True
        self.vcpu.run()
        self.runs += 1
        self._coalescing.drain()

    def _out(self, port: int, data: bytes) -> None:
        match port:
            case 0xF5:
                self._listener.marked(self._mark(int.from_bytes(data, "little")))
            case 0xE9:
                self._listener.said(data)
            case 0xF4:
                self._listener.left(int.from_bytes(data, "little"))
            case _:
                self._ports.write(port, data)

    def _mark(self, value: int) -> Mark:
        counters = self.stats.read()
        return Mark(self.number, value, self.runs, counters.get("mmio_exits", 0), counters.get("io_exits", 0))
