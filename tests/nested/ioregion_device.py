"""The far end of an ioregionfd, by hand: what the kernel's commands are, byte by byte, and no library between."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Self

from kvm_ioctls import Exit, Interrupted, IoRegion, Vcpu, Vm

DEADLINE = 120.0  # seconds: the machine is emulated, and sometimes checked at every step
COMMAND = struct.Struct("<BB6sQQQ")
RESPONSE = struct.Struct("<Q24x")
WRITE, WAITS = 1, 1 << 4


class Command(NamedTuple):
    """What KVM sends: ``size`` in bytes, ``waits`` when it wants a response."""

    write: bool
    size: int
    waits: bool
    user_data: int
    offset: int
    data: int

    @classmethod
    def unpack(cls, message: bytes) -> Self:
        """From its 32 bytes, of which those that mean nothing are zero."""
        kind, form, padding, user_data, offset, data = COMMAND.unpack(message)
        assert kind <= WRITE
        assert form & ~0x1F == 0
        assert padding == bytes(6)
        return cls(bool(kind & WRITE), 1 << (form & 0xF), bool(form & WAITS), user_data, offset, data)


class Device:
    """One socket to the kernel. Nothing is answered but by its user."""

    def __init__(self, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> None:
        self.ours, self.kernels = socket.socketpair(socket.AF_UNIX, kind)
        self.ours.settimeout(DEADLINE)

    def region(self, start: int, size: int, user_data: int = 0, *, posted: bool = False, pio: bool = False) -> IoRegion:
        """A region that is served here."""
        fd = self.kernels.fileno()
        return IoRegion(start, size, user_data, read_fd=fd, write_fd=fd, pio=pio, posted_writes=posted)

    def receive(self) -> Command:
        """The next command."""
        message = b""
        while len(message) < COMMAND.size:
            piece = self.ours.recv(COMMAND.size - len(message))
            assert piece, "the kernel has hung up"
            message += piece
        return Command.unpack(message)

    def answer(self, data: int = 0) -> None:
        """Respond to it."""
        self.ours.sendall(RESPONSE.pack(data))

    def idle(self) -> bool:
        """Whether no command waits to be received."""
        waiter = select.poll()
        waiter.register(self.ours, select.POLLIN)
        return not waiter.poll(0)

    def hang_up(self) -> None:
        """Leave."""
        self.ours.close()

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self.kernels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Running:
    """A vCPU that runs in a thread until it leaves for a reason that is none of ``ignored``."""

    def __init__(self, vcpu: Vcpu, *ignored: Exit) -> None:
        self.vcpu = vcpu
        self._ignored = ignored
        self.interruptions = 0
        self._found: Exit | BaseException = Interrupted()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while (found := self.vcpu.run()) in self._ignored:
            self.interruptions += 1
        self._found = found

    def result(self) -> Exit | BaseException:
        """Why it left."""
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive(), "the vCPU is still in KVM_RUN"
        return self._found


@contextmanager
def served(vm: Vm, *regions: IoRegion) -> Iterator[None]:
    """Regions that are there for as long as the block."""
    with ExitStack() as stack:
        for region in regions:
            vm.set_ioregion(region)
            stack.callback(vm.ioregion_deassign, region)
        yield


@contextmanager
def serving(device: Device, reply: Callable[[Command], int]) -> Iterator[list[Command]]:
    """Answer commands in a thread until the device is hung up, at the end of the block; they are collected."""
    seen: list[Command] = []

    def loop() -> None:
        while message := device.ours.recv(COMMAND.size):
            seen.append(command := Command.unpack(message))
            if command.waits:
                device.answer(reply(command))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield seen
    finally:
        device.ours.shutdown(socket.SHUT_RD)
        thread.join(DEADLINE)
        assert not thread.is_alive()
