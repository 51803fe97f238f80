"""edu: QEMU's teaching device, register for register (QEMU, docs/specs/edu.rst)."""

from __future__ import annotations

import math
from enum import IntFlag

from bellwire import Bar, GuestError, IntX, Msi, Option, PciDevice, Saved, SavedBytes

DMA_START = 0x40000
DMA_SIZE = 4096
DMA_DELAY = 0.1  # seconds, as in QEMU
ZERO_FROM = 34  # 34! has 32 factors of two


class Status(IntFlag):
    """Bits of the status register."""

    COMPUTING = 0x01
    IRQ_WHEN_DONE = 0x80


class DmaCommand(IntFlag):
    """Bits of the DMA command register."""

    START = 0x1
    TO_GUEST = 0x2
    INTERRUPT = 0x4


IRQ_FACTORIAL = 0x001
IRQ_DMA = 0x100


class Edu(
    PciDevice,
    vendor=0x1234,
    device=0x11E8,
    class_code=0x00FF00,
    revision=0x10,
    subsystem=(0x1AF4, 0x1100),
    express=False,
    repeats=True,
):
    """Computes factorials, copies to and from a 4 KiB buffer of its own, interrupts by MSI or INTA."""

    dma_mask = Option((1 << 28) - 1, least=0, most=(1 << 64) - 1, help="bits of a guest address that its DMA can reach")
    dma_delay = Option(DMA_DELAY, least=0, most=3600, help="seconds from the command to the transfer")

    msi = Msi(1)
    line = IntX()

    mmio = Bar(0, size=1 << 20, fill=0xFF)
    ident = mmio.reg(0x00, access="constant", reset=0x0100_00ED)
    liveness = mmio.reg(0x04)
    factorial = mmio.reg(0x08)
    status = mmio.reg(0x20, Status, writable=Status.IRQ_WHEN_DONE)
    irq_status = mmio.reg(0x24, access="ro")
    irq_raise = mmio.reg(0x60, access="wo")
    irq_acknowledge = mmio.reg(0x64, access="wo")
    dma_source = mmio.reg(0x80, size=8)
    dma_destination = mmio.reg(0x88, size=8)
    dma_count = mmio.reg(0x90, size=8)
    dma_command = mmio.reg(0x98, DmaCommand, size=8)

    buffer = SavedBytes(DMA_SIZE)

    # The values of the registers while the device is busy: it ignores writes to them then.
    operand = Saved(0)
    held_source = Saved(0)
    held_destination = Saved(0)
    held_count = Saved(0)
    held_command = Saved(0)

    def restored(self) -> None:
        """Continue the computation or the transfer that was under way."""
        if Status.COMPUTING in self.status:
            self.after(0, self.compute)
        if DmaCommand.START in self.dma_command:
            self.after(self.dma_delay, self.transfer)

    def recovered(self, torn: bool) -> None:
        """Go on after a process has died: compute or transfer again, and interrupt for what the guest has not cleared.

        A transfer that was begun has all its registers held. One that was only asked for begins now.
        """
        if DmaCommand.START in DmaCommand(self.held_command):
            self.dma_command = DmaCommand(self.held_command)
            self.hold_registers(0)
        elif DmaCommand.START in self.dma_command:
            self.hold(self.dma_command)
        self.restored()
        self.interrupt(0)

    @liveness.write
    def check_liveness(self, value: int) -> None:
        """Store the inverse of the value, which the next read gives."""
        self.liveness = ~value

    @factorial.write
    def start_factorial(self, value: int) -> None:
        """Compute in the background, so that a driver has to poll the status."""
        if Status.COMPUTING in self.status:
            self.factorial = self.operand
            return
        self.operand = value
        self.status |= Status.COMPUTING
        self.after(0, self.compute)

    def compute(self) -> None:
        """The factorial modulo 2**32. From 34! on it is zero."""
        self.factorial = math.factorial(self.operand) if self.operand < ZERO_FROM else 0
        if Status.IRQ_WHEN_DONE in self.status:
            self.interrupt(IRQ_FACTORIAL)
        self.status &= ~Status.COMPUTING  # last: until then, a successor computes again

    @irq_raise.write
    def interrupt(self, bits: int) -> None:
        """Set interrupt status bits, and interrupt by MSI if the guest has enabled it, else by INTx."""
        self.irq_status |= bits
        if not self.irq_status:
            return
        if self.msi.enabled:
            self.msi[0].trigger()
        else:
            self.line.high()

    @irq_acknowledge.write
    def acknowledge(self, bits: int) -> None:
        """Clear interrupt status bits. The line stays high until all are clear."""
        self.irq_status &= ~bits
        if not self.irq_status:
            self.line.low()

    @dma_source.write
    @dma_destination.write
    @dma_count.write
    def hold_registers(self, _: int) -> None:
        """Undo a write to a DMA register while a transfer is under way."""
        if DmaCommand.START in self.dma_command:
            self.dma_source = self.held_source
            self.dma_destination = self.held_destination
            self.dma_count = self.held_count

    @dma_command.write
    def start_transfer(self, command: DmaCommand) -> None:
        """Start a transfer, if the command says so and none is under way. Else the command is ignored."""
        held = DmaCommand(self.held_command)
        if DmaCommand.START in held or DmaCommand.START not in command:
            self.dma_command = held
            return
        self.hold(command)
        self.after(self.dma_delay, self.transfer)

    def hold(self, command: DmaCommand) -> None:
        """Keep the values that the transfer begins with. The command is last: it says that the others are there."""
        self.held_source, self.held_destination = self.dma_source, self.dma_destination
        self.held_count = self.dma_count
        self.held_command = command

    def transfer(self) -> None:
        """Copy between guest memory and the buffer, which lies at DMA_START for the guest."""
        command = self.dma_command
        try:
            if DmaCommand.TO_GUEST in command:
                self.dma.write(self.dma_destination & self.dma_mask, self.window(self.dma_source))
            else:
                window = self.window(self.dma_destination)
                window[:] = self.dma.read(self.dma_source & self.dma_mask, len(window))
        finally:
            if DmaCommand.INTERRUPT in command:
                self.interrupt(IRQ_DMA)
            self.dma_command = self.held_command = command & ~DmaCommand.START

    def window(self, address: int) -> memoryview:
        """The part of the buffer that a transfer reads or writes. A GuestError outside the buffer."""
        start, count = address - DMA_START, self.dma_count
        if start < 0 or start + count > DMA_SIZE:
            raise GuestError(f"DMA of {count} bytes at {address:#x}: the buffer is {DMA_SIZE} bytes at {DMA_START:#x}")
        return self.buffer[start : start + count]
