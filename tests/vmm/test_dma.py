"""A device that asks for guest memory by message, whoever is listening at the moment."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bellwire.bundled.edu import Edu
from bellwire_vmm.device.dma import DmaMemory
from bellwire_vmm.guests.layout import EduInterrupts, pack_edu, unpack_edu
from bellwire_vmm.machine.memory import GuestMemory
from bellwire_vmm.vmm import Machine
from vfio_user import Client, Command, DmaAccess, MessageFlags, VfioUserError
from vfio_user.channel import HEADER
from vmm.sdk import working

pytestmark = pytest.mark.kvm

NUMBER, FACTORIAL, LENGTH, RAISED = 10, 3628800, 4096, 0x1234_0000


def expected(arrivals: int) -> EduInterrupts:
    return EduInterrupts(FACTORIAL, 1, 0x100, 0x100, RAISED, arrivals, LENGTH, arrivals + 3)


@pytest.mark.parametrize("share_memory", [True, False])
def test_edu_copies_guest_memory(machine: Machine, share_memory: bool) -> None:
    with working(Edu, dma_delay=0.001) as sock:
        device = machine.plug(Client(sock), share_memory=share_memory)
        machine.load("edu", pack_edu(NUMBER, LENGTH, 3))
        run = machine.run(20)
        assert run.ok, run
        seen = unpack_edu(machine.memory)
        machine.unplug(device)
    assert (seen.identification, seen.liveness) == (0x0100_00ED, 0xFFFF_FFFF ^ 0x1234_5678)
    assert (seen.intx, seen.msi) == (expected(4), expected(1))


@pytest.fixture
def memory(nothing_left_behind: None) -> Iterator[DmaMemory]:
    memory = GuestMemory(1 << 16)
    yield DmaMemory(memory)
    memory.close()


def test_memory_that_is_not_there_is_a_fault_for_the_device(memory: DmaMemory) -> None:
    memory.write(0xFFF0, b"x" * 16)
    assert memory.read(0xFFF0, 16) == b"x" * 16
    calls: list[Callable[[], object]] = [
        lambda: memory.read(0xFFF1, 16),
        lambda: memory.write(0xFFF1, b"x" * 16),
        lambda: memory.read(1 << 63, 1),
    ]
    for call in calls:
        with pytest.raises(VfioUserError, match="guest memory ends at 0x10000") as caught:
            call()
        assert caught.value.errno == errno.EFAULT


def test_a_request_that_comes_along_with_a_reply_is_answered_at_once(memory: DmaMemory) -> None:
    ours, theirs = socket.socketpair()

    def serve() -> bytes:
        """A server that asks for memory in the same breath as it answers."""
        version = theirs.recv(4096)
        theirs.sendall(_reply(version, struct.pack("<HH", 0, 1)))
        read = theirs.recv(4096)
        asked = DmaAccess(0x1000, 4).pack()
        request = HEADER.pack(99, Command.DMA_READ, HEADER.size + len(asked), 0, 0) + asked
        theirs.sendall(_reply(read, read[HEADER.size :] + b"data") + request)
        return theirs.recv(4096)

    memory.write(0x1000, b"here")
    with theirs, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(serve)
        with Client(ours, memory=memory) as client:
            assert client.read(0, 0, 4) == b"data"
            assert answer.result(5).endswith(b"here")


def _reply(command: bytes, payload: bytes) -> bytes:
    number, kind, _, _, _ = HEADER.unpack_from(command)
    return HEADER.pack(number, kind, HEADER.size + len(payload), MessageFlags.REPLY, 0) + payload
