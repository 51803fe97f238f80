"""serial: a 16550A on PCI, as QEMU's pci-serial is one (National Semiconductor, PC16550D data sheet, §8)."""

from __future__ import annotations

from bellwire import Bar, IntX, Option, PciDevice, Saved, SavedBytes, StateError, Timer
from bellwire.bundled.serial.fifo import DEPTH, Fifo
from bellwire.bundled.serial.registers import LOOPED, TRIGGERS, Cause, Enabled, Fcr, Lcr, Lsr, Mcr, Msr
from bellwire.stream import BACKENDS, Stream, open_stream, stream_fault

FIFOS_ON = 0xC0
FOUR_CHARACTERS = 4 * 10 / 115200  # seconds, at a divisor of 1
LONGEST_SILENCE = 0.05


class Serial(PciDevice, vendor=0x1B36, device=0x0002, class_code=0x070002, revision=0x01, express=False):
    """A serial port: a 16550A whose line leads to a terminal, a socket, a file or standard input and output."""

    backend = Option("pty", check=stream_fault, help=f"the other end: {BACKENDS}")

    line = IntX()

    ports = Bar(0, size=8, io=True)
    data = ports.reg(0, size=1)
    ier = ports.reg(1, size=1)
    iir = ports.reg(2, size=1)
    lcr = ports.reg(3, Lcr, size=1)
    mcr = ports.reg(4, Mcr, size=1, writable=0x1F)
    lsr = ports.reg(5, Lsr, size=1, access="ro")
    msr = ports.reg(6, Msr, size=1, access="ro")
    scr = ports.reg(7, size=1)

    divisor = Saved(12)
    enabled = Saved(0)
    fcr = Saved(0)
    received_bytes = SavedBytes(1 + DEPTH)
    unsent_bytes = SavedBytes(1 + DEPTH)
    emptied = Saved(False)
    """Whether the transmitter has become empty, and the guest does not know yet."""
    silent = Saved(False)
    """Whether bytes have been received, and none for the time of four more (a character timeout)."""

    def setup(self) -> None:
        """Open the stream of the other end."""
        self.received, self.unsent = Fifo(self.received_bytes), Fifo(self.unsent_bytes)
        self.timer: Timer | None = None
        self.plug(open_stream(self.backend))

    def plug(self, stream: Stream) -> None:
        """Connect the line to ``stream``. The device owns it from now on."""
        self.stream = stream
        self.watch(stream.fileno(), self.moved)
        self.log.info("at the other end: %s", stream.name)

    def close(self) -> None:
        """Close the stream."""
        self.unwatch(self.stream.fileno())
        self.stream.close()

    @backend.set
    def replug(self, backend: str) -> None:
        """Connect the line to another stream while the guest runs."""
        if backend != self.backend:
            stream = open_stream(backend)
            self.close()
            self.plug(stream)
            self.moved()

    def reset(self) -> None:
        """Read the modem's levels, without any change bits."""
        self.msr = self.levels
        self.refresh()

    def check_state(self) -> None:
        """Refuse a snapshot with values that no driver can bring about."""
        registers = (self.fcr, 0xFF), (self.enabled, 0x0F), (self.divisor, 0xFFFF)
        if any(not 0 <= value <= most for value, most in registers):
            raise StateError(f"the snapshot has FCR {self.fcr:#x}, IER {self.enabled:#x}, divisor {self.divisor}")
        if max(len(self.received), len(self.unsent)) > DEPTH:
            raise StateError(f"the snapshot has FIFOs of {len(self.received)} and {len(self.unsent)} bytes")

    def restored(self) -> None:
        """Set the timer again, and compare the levels: another peer may be there now."""
        if not self.silent:
            self.await_silence()
        self.compare_levels()

    def recovered(self, torn: bool) -> None:
        """Go on after a process has died. Bytes of which it is not known that they were sent are sent again."""
        self.transmit()
        self.restored()

    # -- what follows from the state

    @property
    def depth(self) -> int:
        """The bytes that each FIFO can hold: one if FIFOs are off."""
        return DEPTH if self.fcr else 1

    @property
    def trigger(self) -> int:
        """The number of received bytes that raises an interrupt."""
        return TRIGGERS[self.fcr >> 6]

    @property
    def busy(self) -> bool:
        """Whether the other end has to wait: the guest takes no bytes now."""
        stopped = Mcr.DTR in self.mcr and Mcr.RTS not in self.mcr
        return stopped or Mcr.LOOP in self.mcr or len(self.received) >= self.trigger

    @property
    def levels(self) -> Msr:
        """The levels of the modem lines: high while the stream has a peer. In loopback mode the outputs give them."""
        if Mcr.LOOP in self.mcr:
            return Msr(sum(level for control, level in LOOPED.items() if control in self.mcr))
        return Msr.CTS | Msr.DSR | Msr.DCD if self.stream.connected else Msr(0)

    @property
    def cause(self) -> Cause:
        """The most urgent enabled cause of an interrupt."""
        enabled = Enabled(self.enabled)
        if Enabled.LINE in enabled and self.lsr & Lsr.ERRORS:
            return Cause.LINE
        if Enabled.RECEIVED in enabled and len(self.received) >= self.trigger:
            return Cause.RECEIVED
        if Enabled.RECEIVED in enabled and self.silent:
            return Cause.SILENCE
        if Enabled.EMPTY in enabled and self.emptied:
            return Cause.EMPTY
        if Enabled.MODEM in enabled and self.msr & Msr.CHANGES:
            return Cause.MODEM
        return Cause.NONE

    def refresh(self) -> None:
        """Update LSR, IIR, INTx and the stream. Every change of the state ends with this call."""
        ready = Lsr.READY if self.received else Lsr(0)
        empty = Lsr(0) if self.unsent else Lsr.EMPTY | Lsr.IDLE
        self.lsr = self.lsr & Lsr.ERRORS | ready | empty
        cause = self.cause
        self.iir = cause | (FIFOS_ON if self.fcr else 0)
        if cause is Cause.NONE:
            self.line.low()
        else:
            self.line.high()
        self.stream.hold(self.busy)

    def compare_levels(self) -> None:
        """Set the change bits of levels that have changed. For the ring indicator only its end counts."""
        levels = self.levels
        changed = (self.msr & Msr.LEVELS ^ levels) >> 4
        if Msr.RING in levels:
            changed &= ~Msr.RING_ENDED
        self.msr = self.msr & Msr.CHANGES | changed | levels
        self.refresh()

    # -- bytes

    def moved(self) -> None:
        """The stream is ready: a peer has come or gone, has sent bytes, or can take bytes again."""
        self.stream.look()
        self.transmit()
        if not self.busy and (data := self.stream.receive(self.depth - len(self.received))):
            self.receive(data)
        self.compare_levels()

    def transmit(self) -> None:
        """Send the bytes that the other end takes. The rest waits for :meth:`moved`."""
        if waiting := bytes(self.unsent):
            if Mcr.LOOP in self.mcr:
                sent = len(waiting)
                self.receive(waiting)
            else:
                sent = self.stream.send([waiting])
            self.unsent.fill(waiting[sent:])
            self.emptied = not self.unsent

    def receive(self, data: bytes) -> None:
        """Store received bytes. If there is no room, bytes are lost, and LSR reports the overrun.

        A full FIFO keeps its bytes, and drops new ones. Without FIFOs, a new byte replaces the old one.
        """
        content = bytes(self.received) + data
        if len(content) > self.depth:
            self.lsr |= Lsr.OVERRUN
        self.received.fill(content[:DEPTH] if self.fcr else content[-1:])
        self.await_silence()

    def await_silence(self) -> None:
        """Start the character timeout again. It interrupts for bytes that stay below the trigger level."""
        self.silent = False
        if self.timer:
            self.timer.cancel()
        if 0 < len(self.received) < self.trigger:
            self.timer = self.after(min(FOUR_CHARACTERS * self.divisor, LONGEST_SILENCE), self.fall_silent)

    def fall_silent(self) -> None:
        """The character timeout has ended."""
        self.silent = True
        self.refresh()

    # -- registers

    @data.write
    def write_data(self, value: int) -> None:
        """THR: a byte to send. With DLAB set, the low half of the divisor."""
        if Lcr.DIVISOR in self.lcr:
            self.divisor = self.divisor & 0xFF00 | value
            return
        self.emptied = False
        self.unsent.fill((bytes(self.unsent) + bytes([value]))[: self.depth])
        self.transmit()
        self.refresh()

    @data.read
    def read_data(self) -> int:
        """RBR: the oldest byte received. With DLAB set, the low half of the divisor."""
        if Lcr.DIVISOR in self.lcr:
            return self.divisor & 0xFF
        content = bytes(self.received)
        self.received.fill(content[1:])
        self.await_silence()
        self.refresh()
        return content[0] if content else 0

    @ier.write
    def write_ier(self, value: int) -> None:
        """IER: the enabled interrupts. With DLAB set, the high half of the divisor."""
        if Lcr.DIVISOR in self.lcr:
            self.divisor = value << 8 | self.divisor & 0xFF
            return
        if Enabled.EMPTY in Enabled(value & ~self.enabled) and not self.unsent:
            self.emptied = True
        self.enabled = value & 0x0F
        self.refresh()

    @ier.read
    def read_ier(self) -> int:
        """IER, or with DLAB set the high half of the divisor, as it was written."""
        return self.divisor >> 8 if Lcr.DIVISOR in self.lcr else self.enabled

    @iir.read
    def read_iir(self) -> int:
        """IIR: a read that reports the empty transmitter clears this cause."""
        value = self.iir
        if self.cause is Cause.EMPTY:
            self.emptied = False
            self.refresh()
        return value

    @iir.write
    def write_fcr(self, value: int) -> None:
        """FCR: turn the FIFOs on or off, or clear them. Turning them on or off clears them too."""
        control = Fcr(value)
        turned = bool(self.fcr) is not (Fcr.ENABLE in control)
        if turned or Fcr.CLEAR_RECEIVED in control:
            self.received.fill(b"")
        if self.unsent and (turned or Fcr.CLEAR_UNSENT in control):
            self.unsent.fill(b"")
            self.emptied = True
        self.fcr = value if Fcr.ENABLE in control else 0
        self.await_silence()  # the trigger level or the content may have changed
        self.refresh()

    @lcr.write
    def write_lcr(self, value: Lcr) -> None:
        """LCR: a break is received in loopback mode. Streams cannot carry one."""
        if Lcr.BREAK in value and Mcr.LOOP in self.mcr:
            self.lsr |= Lsr.BREAK
            self.receive(b"\0")
        self.refresh()

    @mcr.write
    def write_mcr(self, _: Mcr) -> None:
        """MCR: set the outputs, or loopback mode."""
        self.compare_levels()

    @lsr.read
    def read_lsr(self) -> int:
        """LSR: a read clears the error bits."""
        value = self.lsr
        if value & Lsr.ERRORS:
            self.lsr &= ~Lsr.ERRORS
            self.refresh()
        return value

    @msr.read
    def read_msr(self) -> int:
        """MSR: a read clears the change bits."""
        value = self.msr
        self.msr &= Msr.LEVELS
        self.refresh()
        return value
