"""QEMU's command line for a plan: a PC (q35) with nothing that was not asked for.

The user's devices are first on bus 0, so they are found at 00:01.0 and up, in the order in which they were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bellwired.guest.errors import MachineError
from bellwired.guest.plan import MIB, Plan

CONSOLE, SERIAL_CONSOLE = "console=ttyS0", "console=ttyS"
APPEND = "loglevel=6 panic=-1 random.trust_cpu=on no_timer_check sysctl.kernel.hung_task_timeout_secs=30"
"""``no_timer_check``: Linux panics if its timer does not tick in time, which happens on a host with much to do.
A task that waits for 30 seconds and cannot be killed is reported; Linux's default is 120.
"""
PORT = "bellwire"
"""The name of the virtio-serial port that the agent looks for."""
SERIAL, ROOT_PORT = "bellwire-serial", "bellwire-port"
"""QEMU's names of the board's own devices: a user's device may be called serial, or port0."""
SERIAL_SLOT, NETWORK_SLOT, FIRST_ROOT_PORT = 0x1E, 0x1D, 0x18
MOST_ROOT_PORTS = NETWORK_SLOT - FIRST_ROOT_PORT
FIRST_SLOT, MOST_DEVICES = 1, 15
"""The slots of bus 0 that are left for the user's devices."""


class Place(NamedTuple):
    """Where a function of a device is: QEMU's properties for it, and its address in the guest."""

    properties: dict[str, Any]
    address: str


def place(number: int, function: int = 0, *, several: bool = False, root_port: bool = False) -> Place:
    """The place of a function of the device with this number, from 0 on; its device may have ``several``.

    Devices have slots of bus 0, from 1 on. With ``root_port``, each is behind a port of its own instead, on bus 1 and
    up. A MachineError if the machine has no such place.
    """
    most = MOST_ROOT_PORTS if root_port else MOST_DEVICES
    if number >= most:
        raise MachineError(f"the machine has places for {most} devices{' behind root ports' if root_port else ''}")
    bus, slot = (f"{ROOT_PORT}{number}", 0) if root_port else ("pcie.0", FIRST_SLOT + number)
    properties = {"bus": bus, "addr": f"{slot:x}.{function}", **({"multifunction": True} if several else {})}
    return Place(properties, f"0000:{number + 1 if root_port else 0:02x}:{slot:02x}.{function}")


@dataclass(frozen=True)
class Ends:
    """Descriptors that QEMU inherits."""

    channel: int
    console: int
    control: int
    initramfs: int


def memory(mib: int, *, shared: bool = True) -> list[str]:
    """Arguments for the guest's memory: a file that devices map, or memory that they must ask for by message.

    (A file with ``share=off`` would be a trap: QEMU hands it over all the same, and the guest's stores are not in it.)
    """
    backend = "memory-backend-memfd,share=on" if shared else "memory-backend-ram"
    return ["-m", f"{mib}M", "-object", f"{backend},id=ram,size={mib}M", "-machine", "memory-backend=ram"]


def bare(qemu: Sequence[str]) -> list[str]:
    """The command line of a QEMU with no device but the board's own."""
    return [*qemu, "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none"]


def command_line(plan: Plan, ends: Ends, folders: Iterable[str]) -> list[str]:
    """All of QEMU's command line; ``folders`` are the arguments for the shares."""
    words = [*bare(plan.qemu.words), "-accel", plan.qemu.accelerator, "-no-reboot", "-smp", str(plan.cpus)]
    if plan.qemu.accelerator == "kvm":
        words += ["-cpu", "host"]
    words += memory(plan.memory // MIB, shared=plan.shared)
    words += ["-kernel", str(plan.kernel.image), "-initrd", f"/proc/self/fd/{ends.initramfs}"]
    # Linux has one console of that kind. If the plan names another line, the kernel's messages are there alone.
    console = [] if SERIAL_CONSOLE in plan.append else [CONSOLE]
    words += ["-append", " ".join([*console, APPEND, plan.append]).rstrip()]
    words += ["-chardev", f"socket,id=console,fd={ends.console}", "-serial", "chardev:console"]
    words += ["-chardev", f"socket,id=control,fd={ends.control}", "-qmp", "chardev:control"]
    for number in range(plan.ports):
        slot = FIRST_ROOT_PORT + number
        place = f"bus=pcie.0,addr={slot:#x},chassis={number + 1},slot={slot}"
        words += ["-device", f"pcie-root-port,id={ROOT_PORT}{number},{place}"]
    words += plan.board
    for device in plan.devices:
        words += ["-device", device.argument]
    words += ["-device", f"virtio-serial-pci,id={SERIAL},bus=pcie.0,addr={SERIAL_SLOT:#x},max_ports=2"]
    words += ["-chardev", f"socket,id=channel,fd={ends.channel}"]
    words += ["-device", f"virtserialport,bus={SERIAL}.0,chardev=channel,name={PORT}"]
    if plan.network:
        words += ["-netdev", "user,id=network"]
        words += ["-device", f"virtio-net-pci,netdev=network,bus=pcie.0,addr={NETWORK_SLOT:#x},romfile="]
    if plan.gdb is not None:
        words += ["-chardev", f"socket,id=gdb,path={plan.gdb},server=on,wait=off", "-gdb", "chardev:gdb"]
    return [*words, *folders, *plan.arguments]
