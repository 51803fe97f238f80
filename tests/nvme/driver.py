"""A small NVMe driver: it enables the controller, makes queues, submits, and reaps by the phase bit."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypedDict, Unpack

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.testing import Guest

PAGE = 4096
CC, CSTS, AQA, ASQ, ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30
ENABLE = 0x0046_0001
MEMORY = 16 << 20


class Machine(Protocol):
    """How the driver reaches the device."""

    memory: memoryview

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, value: int, size: int) -> None: ...
    def step(self) -> None:
        """Let the device do something."""


class TestMachine:
    """The VM-less guest."""

    __test__ = False

    def __init__(self, guest: Guest[Nvme]) -> None:
        self.guest = guest
        self.memory = guest.memory

    def read(self, offset: int, size: int) -> int:
        return self.guest.read(0, offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        self.guest.write(0, value, offset=offset, size=size)

    def step(self) -> None:
        self.guest.advance()


class Fields(TypedDict, total=False):
    """What a command says; what is left out is 0."""

    nsid: int
    prp1: int
    prp2: int
    dwords: Sequence[int]
    flags: int
    cid: int | None


class Done(NamedTuple):
    """A completion."""

    result: int
    sq_head: int
    sqid: int
    cid: int
    status: int

    @property
    def code(self) -> int:
        """Status code type and status code, without More and Do Not Retry."""
        return self.status & 0x7FF


class Queues:
    """A submission queue and the completion queue that it has to itself."""

    def __init__(self, driver: Driver, qid: int, size: int) -> None:
        self.driver = driver
        self.qid = qid
        self.size = size
        self.sq = driver.allocate(size * 64)
        self.cq = driver.allocate(size * 16)
        self.tail = self.head = 0
        self.phase = 1
        self.cids = itertools.cycle(range(0x1000))
        self.reaped: dict[int, Done] = {}
        self.auto_head = True

    def put(
        self,
        opcode: int,
        *,
        nsid: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        dwords: Sequence[int] = (),
        flags: int = 0,
        cid: int | None = None,
    ) -> int:
        """Write a command, without a ring; its id."""
        cid = next(self.cids) if cid is None else cid
        ten = [*dwords, 0, 0, 0, 0, 0, 0][:6]
        struct.pack_into(
            "<BBHIQQQQ6I", self.driver.memory, self.sq + self.tail * 64,
            opcode, flags, cid, nsid, 0, 0, prp1, prp2, *ten,
        )  # fmt: skip
        self.tail = (self.tail + 1) % self.size
        return cid

    def ring(self) -> None:
        self.driver.machine.write(0x1000 + 8 * self.qid, self.tail, 4)

    def take_head(self) -> None:
        self.driver.machine.write(0x1004 + 8 * self.qid, self.head, 4)

    def reap(self) -> list[Done]:
        """All completions that are there."""
        found = []
        while True:
            result, _, sq_head, sqid, cid, status = struct.unpack_from(
                "<IIHHHH", self.driver.memory, self.cq + self.head * 16
            )
            if status & 1 != self.phase:
                break
            found.append(Done(result, sq_head, sqid, cid, status >> 1))
            self.head += 1
            if self.head == self.size:
                self.head, self.phase = 0, self.phase ^ 1
        if found and self.auto_head:
            self.take_head()
        return found

    def wait(self, *cids: int, steps: int = 10_000) -> list[Done]:
        """The completions of these commands."""
        for _ in range(steps):
            self.reaped |= {done.cid: done for done in self.reap()}
            if all(cid in self.reaped for cid in cids):
                return [self.reaped.pop(cid) for cid in cids]
            self.driver.machine.step()
        raise AssertionError(f"queue {self.qid}: commands {cids} did not complete")

    def do(self, opcode: int, **fields: Unpack[Fields]) -> Done:
        """Submit one command and wait for it."""
        cid = self.put(opcode, **fields)
        self.ring()
        return self.wait(cid)[0]


class Driver:
    """The controller as a host sees it."""

    def __init__(self, machine: Machine, *, admin_size: int = 32) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.next_page = 0x10000
        self.admin = Queues(self, 0, admin_size)
        self.io: dict[int, Queues] = {}

    def allocate(self, size: int) -> int:
        """Zeroed pages."""
        address = self.next_page
        self.next_page += -(-size // PAGE) * PAGE
        assert self.next_page <= len(self.memory), "the test guest has no more memory"
        self.memory[address : self.next_page] = bytes(self.next_page - address)
        return address

    @property
    def csts(self) -> int:
        return self.machine.read(CSTS, 4)

    def enable(self) -> None:
        size = self.admin.size - 1
        self.machine.write(AQA, size << 16 | size, 4)
        self.machine.write(ASQ, self.admin.sq, 8)
        self.machine.write(ACQ, self.admin.cq, 8)
        self.machine.write(CC, ENABLE, 4)
        self.wait_for(0x3, 0x1)

    def disable(self) -> None:
        self.machine.write(CC, ENABLE & ~1, 4)
        self.wait_for(0x3, 0)

    def wait_for(self, mask: int, value: int) -> None:
        for _ in range(10_000):
            if self.csts & mask == value:
                return
            self.machine.step()
        raise AssertionError(f"CSTS is {self.csts:#x}")

    def create_queues(self, qid: int = 1, size: int = 64, *, vector: int | None = None) -> Queues:
        queues = Queues(self, qid, size)
        iv = qid if vector is None else vector
        for opcode, base, attributes in (
            (AdminOpcode.CREATE_COMPLETION_QUEUE, queues.cq, iv << 16 | 3),
            (AdminOpcode.CREATE_SUBMISSION_QUEUE, queues.sq, qid << 16 | 1),
        ):
            done = self.admin.do(opcode, prp1=base, dwords=((size - 1) << 16 | qid, attributes))
            assert done.status == 0, done
        self.io[qid] = queues
        return queues

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        page = self.allocate(PAGE)
        done = self.admin.do(AdminOpcode.IDENTIFY, nsid=nsid, prp1=page, dwords=(cns,))
        assert done.status == 0, done
        return bytes(self.memory[page : page + PAGE])

    def log(self, number: int, size: int = 512, offset: int = 0) -> bytes:
        page = self.allocate(PAGE)
        dwords = ((size // 4 - 1) << 16 | number, 0, offset, 0)
        done = self.admin.do(AdminOpcode.GET_LOG_PAGE, nsid=0xFFFF_FFFF, prp1=page, dwords=dwords)
        assert done.status == 0, done
        return bytes(self.memory[page : page + size])


def prps(driver: Driver, pages: Sequence[int], offset: int = 0) -> tuple[int, int]:
    """PRP1 and PRP2 for data that starts at ``offset`` of the first of ``pages``; the list in pages of its own."""
    if len(pages) == 1:
        return pages[0] + offset, 0
    if len(pages) == 2:
        return pages[0] + offset, pages[1]
    rest = list(pages[1:])
    first = at = driver.allocate(PAGE)
    while True:
        if len(rest) <= 512:
            struct.pack_into(f"<{len(rest)}Q", driver.memory, at, *rest)
            return pages[0] + offset, first
        struct.pack_into("<511Q", driver.memory, at, *rest[:511])
        del rest[:511]
        following = driver.allocate(PAGE)
        struct.pack_into("<Q", driver.memory, at + 511 * 8, following)
        at = following


def transfer(
    queues: Queues,
    opcode: IoOpcode,
    address: int,
    block: int,
    count: int,
    *,
    nsid: int = 1,
    shift: int = 9,
    control: int = 0,
) -> Done:
    """A read or write of ``count`` blocks of memory that is contiguous."""
    pages = range(address - address % PAGE, address + (count << shift), PAGE)
    prp1, prp2 = prps(queues.driver, pages, address % PAGE)
    dwords = (block & 0xFFFF_FFFF, block >> 32, count - 1)
    return queues.do(opcode, nsid=nsid, prp1=prp1, prp2=prp2, dwords=dwords)
