"""The driver's end of split and packed virtqueues (virtio 1.2 §2.7, §2.8)."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from virtio.driver import Driver

DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAILABLE, USED = 1 << 7, 1 << 15


class Part(NamedTuple):
    """One descriptor's worth of a buffer."""

    address: int
    length: int
    write: bool


class Used(NamedTuple):
    """A buffer that has come back."""

    parts: list[Part]
    written: int


class Queue(ABC):
    """What both kinds have in common."""

    desc: int
    """Where the descriptors are."""

    def __init__(self, driver: Driver, index: int, size: int, bell: int, *, event_idx: bool) -> None:
        self.driver = driver
        self.memory = driver.memory
        self.index = index
        self.size = size
        self.bell = bell
        self.event_idx = event_idx
        self.held: dict[int, tuple[list[Part], int]] = {}  # by id: the parts, and the slots they take

    @property
    @abstractmethod
    def parts(self) -> tuple[int, int, int]:
        """The three addresses that the device is told."""

    @abstractmethod
    def publish(self, parts: list[Part], *, indirect: bool) -> None:
        """Make a buffer available."""

    @abstractmethod
    def used(self) -> list[Used]:
        """The buffers that have come back since the last time."""

    @abstractmethod
    def wants_notification(self) -> bool:
        """Whether the device has asked for one."""

    @abstractmethod
    def silence(self) -> None:
        """Ask for no interrupts."""

    @abstractmethod
    def interrupt_after(self, buffers: int) -> None:
        """Ask for one interrupt, when so many more have been used (EVENT_IDX)."""

    def add(self, *readable: bytes, write: int | Sequence[int] = (), indirect: bool = False) -> list[Part]:
        """Make ``readable`` available, with room for ``write`` bytes; the device is not told."""
        rooms = [write] if isinstance(write, int) else list(write)
        parts = [Part(self.driver.store(data), len(data), False) for data in readable]
        parts += [Part(self.driver.allocate(room), room, True) for room in rooms]
        self.publish(parts, indirect=indirect)
        return parts

    def send(self, *readable: bytes, write: int | Sequence[int] = (), indirect: bool = False) -> None:
        """:meth:`add`, and notify."""
        self.add(*readable, write=write, indirect=indirect)
        self.kick()

    def kick(self) -> None:
        """Notify."""
        self.driver.notify(self)

    def answers(self) -> list[bytes]:
        """What the device has written into each buffer that has come back."""
        return [self.content(used) for used in self.used()]

    def content(self, used: Used) -> bytes:
        """What the device has written into one."""
        return self.whole(used)[: used.written]

    def whole(self, used: Used) -> bytes:
        """All that the device may have written into one: more than it says, where it left a gap."""
        return b"".join(bytes(self.memory[p.address : p.address + p.length]) for p in used.parts if p.write)

    def word(self, address: int) -> int:
        value: int = struct.unpack_from("<H", self.memory, address)[0]
        return value

    def set_word(self, address: int, value: int) -> None:
        struct.pack_into("<H", self.memory, address, value & 0xFFFF)


class SplitQueue(Queue):
    """A table, a ring of those available, a ring of those used."""

    def __init__(self, driver: Driver, index: int, size: int, bell: int, *, event_idx: bool) -> None:
        super().__init__(driver, index, size, bell, event_idx=event_idx)
        self.desc = driver.allocate(16 * size)
        self.avail = driver.allocate(6 + 2 * size)
        self.ring = driver.allocate(6 + 8 * size)
        self.free = list(range(size))
        self.slots: dict[int, list[int]] = {}  # by head
        self.available = self.seen = 0

    @property
    def parts(self) -> tuple[int, int, int]:
        return self.desc, self.avail, self.ring

    def publish(self, parts: list[Part], *, indirect: bool) -> None:
        if indirect:
            table = self.driver.store(
                b"".join(
                    DESCRIPTOR.pack(p.address, p.length, (WRITE if p.write else 0) | (NEXT if n < len(parts) else 0), n)
                    for n, p in enumerate(parts, 1)
                )
            )
            slots = [self.free.pop(0)]
            self.describe(slots[0], table, 16 * len(parts), INDIRECT, 0)
        else:
            slots = [self.free.pop(0) for _ in parts]
            for n, (slot, part) in enumerate(zip(slots, parts, strict=True), 1):
                last = n == len(parts)
                flags = (WRITE if part.write else 0) | (0 if last else NEXT)
                self.describe(slot, part.address, part.length, flags, 0 if last else slots[n])
        self.held[slots[0]] = (parts, len(slots))
        self.offer(slots[0])
        self.slots[slots[0]] = slots

    def describe(self, slot: int, address: int, length: int, flags: int, following: int) -> None:
        """Write one descriptor, whatever it says."""
        DESCRIPTOR.pack_into(self.memory, self.desc + 16 * slot, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Put a head into the available ring."""
        self.set_word(self.avail + 4 + 2 * (self.available % self.size), head)
        self.available = self.available + 1 & 0xFFFF
        self.set_word(self.avail + 2, self.available)

    def used(self) -> list[Used]:
        found: list[Used] = []
        while self.seen != self.word(self.ring + 2):
            head, written = struct.unpack_from("<II", self.memory, self.ring + 4 + 8 * (self.seen % self.size))
            parts, _ = self.held.pop(head)
            self.free += self.slots.pop(head)
            found.append(Used(parts, written))
            self.seen = self.seen + 1 & 0xFFFF
        return found

    def wants_notification(self) -> bool:
        if self.event_idx:
            return self.word(self.ring + 4 + 8 * self.size) == self.available
        return not self.word(self.ring) & 1

    def silence(self) -> None:
        self.set_word(self.avail, 1)

    def interrupt_after(self, buffers: int) -> None:
        self.set_word(self.avail + 4 + 2 * self.size, self.seen + buffers - 1)


class PackedQueue(Queue):
    """One ring of descriptors, and two structures that say who wants to be told."""

    def __init__(self, driver: Driver, index: int, size: int, bell: int, *, event_idx: bool) -> None:
        super().__init__(driver, index, size, bell, event_idx=event_idx)
        self.desc = driver.allocate(16 * size)
        self.ours = driver.allocate(4)
        self.theirs = driver.allocate(4)
        self.at = self.seen = 0
        self.wrap = self.seen_wrap = 1
        self.next_id = 0

    @property
    def parts(self) -> tuple[int, int, int]:
        return self.desc, self.ours, self.theirs

    def publish(self, parts: list[Part], *, indirect: bool) -> None:
        number = self.next_id
        self.next_id = (self.next_id + 1) % 0x1000
        if indirect:
            table = self.driver.store(
                b"".join(DESCRIPTOR.pack(p.address, p.length, 0, WRITE if p.write else 0) for p in parts)
            )
            raw = [(table, 16 * len(parts), INDIRECT)]
        else:
            raw = [(p.address, p.length, WRITE if p.write else 0) for p in parts]
        self.held[number] = (parts, len(raw))
        self.write_chain(number, raw)

    def write_chain(self, number: int, raw: list[tuple[int, int, int]]) -> None:
        """Lay descriptors down, the first one's flags last."""
        first, head = self.at, 0
        for n, (address, length, flags) in enumerate(raw, 1):
            flags |= AVAILABLE if self.wrap else USED
            flags |= NEXT if n < len(raw) else 0
            DESCRIPTOR.pack_into(self.memory, self.desc + 16 * self.at, address, length, number, 0 if n == 1 else flags)
            head = flags if n == 1 else head
            self.at += 1
            if self.at == self.size:
                self.at, self.wrap = 0, self.wrap ^ 1
        self.set_word(self.desc + 16 * first + 14, head)

    def used(self) -> list[Used]:
        found: list[Used] = []
        while True:
            _, written, number, flags = DESCRIPTOR.unpack_from(self.memory, self.desc + 16 * self.seen)
            marks = bool(flags & AVAILABLE), bool(flags & USED)
            if marks != (bool(self.seen_wrap), bool(self.seen_wrap)):
                return found
            parts, slots = self.held.pop(number)
            found.append(Used(parts, written))
            self.seen += slots
            if self.seen >= self.size:
                self.seen, self.seen_wrap = self.seen - self.size, self.seen_wrap ^ 1

    def wants_notification(self) -> bool:
        flags = self.word(self.theirs + 2)
        if flags == 2:
            return self.word(self.theirs) == self.at | self.wrap << 15
        return flags == 0

    def silence(self) -> None:
        self.set_word(self.ours + 2, 1)

    def interrupt_after(self, buffers: int) -> None:
        """Buffers of one descriptor each."""
        at, wrap = self.seen + buffers - 1, self.seen_wrap
        if at >= self.size:
            at, wrap = at - self.size, wrap ^ 1
        self.set_word(self.ours, at | wrap << 15)
        self.set_word(self.ours + 2, 2)
