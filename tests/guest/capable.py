"""A device with every capability that can be declared. It reports the errors that a guest writes to a register."""

from __future__ import annotations

from bellwire import (
    Acs,
    Aer,
    Ats,
    Bar,
    CorrectableError,
    Doe,
    Dvsec,
    Link,
    Ltr,
    MsiX,
    Pasid,
    PciDevice,
    Power,
    PowerState,
    ResizableBars,
    SerialNumber,
    UncorrectableError,
    Vsec,
)

MIB = 1 << 20
HEADER = bytes.fromhex("00112233445566778899aabbccddeeff")


class Capable(PciDevice, vendor=0x1234, device=0xCA9A, class_code=0x088000, name="capable"):
    """Has every capability that can be declared."""

    irq = MsiX(2)
    frame = Bar(0, size=4 * MIB, bits=64, prefetchable=True)
    mmio = Bar(2, size=4096)
    stop = mmio.reg(0x00)
    link = Link(speed=16, width=8)
    power = Power(d1=True, wake_from=(PowerState.D3HOT,))

    errors = Aer()
    serial = SerialNumber(0x0242_57FF_FE00_0001)
    debug = Vsec(0x10, revision=1, size=0x14)
    inject = debug.reg(0x08)
    inject_correctable = debug.reg(0x0C)
    wake = debug.reg(0x10)
    other = Dvsec(0x1234, 0x0007, size=0x10)
    scratch = other.reg(0x0C)
    latency = Ltr()
    ats = Ats(queue_depth=16)
    pasid = Pasid(bits=16)
    isolation = Acs()
    sizes = ResizableBars({frame: (2 * MIB, 4 * MIB)})
    mailbox = Doe((0x1234, 0x01), vector=1)

    @inject.write
    def report(self, value: int) -> None:
        for error in UncorrectableError:
            if value & error:
                self.errors.report(error, header=HEADER)

    @inject_correctable.write
    def report_correctable(self, value: int) -> None:
        for error in CorrectableError:
            if value & error:
                self.errors.report(error)

    @stop.write
    def stop_the_client(self, value: int) -> None:
        for error in UncorrectableError:
            if value & error:
                self.errors.report(error, stop_client=True)

    @wake.write
    def wake_soon(self, _: int) -> None:
        self.after(0.5, self.wake_now)

    def wake_now(self) -> None:
        self.power.wake()

    @mailbox.request
    def asked(self, vendor: int, kind: int, data: bytes) -> bytes:
        return data[::-1]
