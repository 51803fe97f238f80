"""QEMU without a guest: its processors stand still, and the test does to the machine what a guest would.

Commands and answers are lines (QEMU, system/qtest.c).
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import time
from pathlib import Path

from bellwired.guest.processes import ending
from bellwired.guest.qmp import Qmp
from rendezvous import joined

PATIENCE = 60.0  # seconds
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
_LETTERS = {1: "b", 2: "w", 4: "l", 8: "q"}


class Qtest:
    """The far end of QEMU's standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._buffer = b""
        self.raised: set[int] = set()
        """The lines of the interrupt controller that are asserted, once :meth:`watch_interrupts` was called."""

    def ask(self, *words: object, timeout: float = PATIENCE) -> str:
        """Send a command; what follows OK in its answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why QEMU has ended is told by what reads its answer
            self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            kind, _, rest = self._line(deadline).partition(" ")
            if kind == "OK":
                return rest
            if kind != "IRQ":
                raise AssertionError(f"{words}: QEMU said {kind} {rest}")
            verb, number = rest.split()
            (self.raised.add if verb == "raise" else self.raised.discard)(int(number))

    def watch_interrupts(self) -> None:
        """Keep :attr:`raised` up to date."""
        self.ask("irq_intercept_in", "ioapic")

    def read(self, address: int, size: int = 4, *, timeout: float = PATIENCE) -> int:
        """A load by the processor."""
        return int(self.ask(f"read{_LETTERS[size]}", hex(address), timeout=timeout), 0)

    def write(self, address: int, value: int, size: int = 4) -> None:
        """A store by the processor."""
        self.ask(f"write{_LETTERS[size]}", hex(address), hex(value))

    def read_bytes(self, address: int, size: int) -> bytes:
        """Memory, as it is."""
        return bytes.fromhex(self.ask("read", hex(address), hex(size)).removeprefix("0x"))

    def write_bytes(self, address: int, data: bytes) -> None:
        """Fill memory."""
        self.ask("write", hex(address), hex(len(data)), f"0x{data.hex()}")

    def port_in(self, port: int, size: int = 4) -> int:
        """Read an I/O port."""
        return int(self.ask(f"in{_LETTERS[size]}", hex(port)), 0)

    def port_out(self, port: int, value: int, size: int = 4) -> None:
        """Write an I/O port."""
        self.ask(f"out{_LETTERS[size]}", hex(port), hex(value))

    def _line(self, deadline: float) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError("QEMU does not answer")
            more = self.process.stdout.read(4096)
            if not more:
                raise AssertionError(f"QEMU {ending(self.process.wait(PATIENCE))}")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


class Function:
    """A PCI function of the machine, reached through the ports of configuration mechanism 1."""

    def __init__(self, machine: Qtest, slot: int, bus: int = 0, number: int = 0) -> None:
        self.machine = machine
        self._address = 1 << 31 | bus << 16 | slot << 11 | number << 8
        self.bars: dict[int, int] = {}

    def config_read(self, offset: int, size: int = 4) -> int:
        """Read config space."""
        self.machine.port_out(CONFIG_ADDRESS, self._address | offset & 0xFC)
        return self.machine.port_in(CONFIG_DATA + (offset & 3), size)

    def config_write(self, offset: int, value: int, size: int = 4) -> None:
        """Write config space."""
        self.machine.port_out(CONFIG_ADDRESS, self._address | offset & 0xFC)
        self.machine.port_out(CONFIG_DATA + (offset & 3), value, size)

    def sizing(self, bar: int) -> int:
        """What a BAR reads when all ones were written to it."""
        old = self.config_read(0x10 + 4 * bar)
        self.config_write(0x10 + 4 * bar, 0xFFFF_FFFF)
        answer = self.config_read(0x10 + 4 * bar)
        self.config_write(0x10 + 4 * bar, old)
        return answer

    def enable(self, memory: int, ports: int = 0xC000) -> None:
        """Place all BARs, from these addresses on, and let the device decode and be bus master."""
        for bar in range(6):
            mask = self.sizing(bar)
            if mask & 1:
                self.config_write(0x10 + 4 * bar, ports)
                self.bars[bar] = ports
                ports += 0x100
            elif mask:
                size = (~mask & 0xFFFF_FFF0 | 0xF) + 1
                memory = -(-memory // size) * size
                self.config_write(0x10 + 4 * bar, memory)
                self.bars[bar] = memory
                memory += size
        self.config_write(0x04, 0x0007, 2)

    def capability(self, number: int) -> int:
        """Where in config space it is."""
        at = self.config_read(0x34, 1)
        while at:
            if self.config_read(at, 1) == number:
                return at
            at = self.config_read(at + 1, 1)
        raise LookupError(f"no capability {number:#x}")

    def read(self, bar: int, offset: int, size: int = 4, *, timeout: float = PATIENCE) -> int:
        """Read a register of a memory BAR."""
        return self.machine.read(self.bars[bar] + offset, size, timeout=timeout)

    def write(self, bar: int, offset: int, value: int, size: int = 4) -> None:
        """Write a register of a memory BAR."""
        self.machine.write(self.bars[bar] + offset, value, size)


def monitor(path: Path) -> Qmp:
    """QEMU's control socket."""
    return Qmp(joined(path))
