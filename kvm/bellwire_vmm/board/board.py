"""A PC's board, as far as an operating system needs one: timer, serial port, power, and the ACPI tables."""

from __future__ import annotations

from collections.abc import Callable

from bellwire_vmm.board.power import CONTROL, CONTROL_SIZE, EVENTS, KEYBOARD, KeyboardController, PowerRegisters
from bellwire_vmm.board.timer import Timer
from bellwire_vmm.board.uart import PORT, PORTS, SERIAL_LINE, Uart
from bellwire_vmm.vmm import Machine, Request


class Board:
    """The board around ``machine``. Make it once, before a guest is loaded. ``send`` gets the serial port's output.

    KVM emulates the local APICs, the IOAPIC and the interval timer. The guest finds kvm-clock by CPUID.
    """

    def __init__(self, machine: Machine, send: Callable[[bytes], None]) -> None:
        vm, ports = machine.vm, machine.platform.port_space
        vm.create_pit2()
        self.uart = Uart(send, lambda level: vm.irq_line(SERIAL_LINE, level))
        ports.add(PORT, PORTS, self.uart)
        power = PowerRegisters(machine.asked)
        ports.add(EVENTS, CONTROL + CONTROL_SIZE - EVENTS, power)
        ports.add(KEYBOARD, 1, KeyboardController(machine.asked))
        machine.bus.on_reset = lambda: machine.asked(Request.RESET)
        machine.parts |= {"serial port": self.uart, "power": power, "timer": Timer(vm)}
