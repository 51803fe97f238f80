"""What the VMM and its micro guests exchange through memory: src/layout.h in Python.

Addresses are guest-physical, times are ticks of the time stamp counter (``Machine.tsc_khz``).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

PARAMETERS = 0x1_0000
PARAMETERS_SIZE = 0x1000
RESULTS = 0x2_0000
RESULTS_END = 0x10_0000

BATCH = 64
"""Rings between two readings of the time stamp counter."""

NONE = 0xFFFF_FFFF


class Memory(Protocol):
    """Guest memory, as far as results need it."""

    def read(self, address: int, count: int) -> bytes:
        """The ``count`` bytes at ``address``."""


class ResultError(ValueError):
    """The results area does not hold what the guest should have left there."""


class Phase(IntEnum):
    """What a mark begins or ends; a mark's value is ``entry << 8 | phase``."""

    RINGS = 1
    RINGS_END = 2
    RAM = 3
    RAM_END = 4
    ROUNDTRIPS = 5
    ROUNDTRIPS_END = 6
    NOTES = 7
    NOTES_END = 8


_BELL_MAGIC, _EDU_MAGIC, _PCI_MAGIC, _BLK_MAGIC, _NVME_MAGIC = (
    int.from_bytes(name, "little") for name in (b"BELL", b"EDU ", b"PCI ", b"BLK ", b"NVME")
)


class Mode(IntEnum):
    """The kind of a ring: a store of one value, stores of 1, 2, 3, ..., or a load."""

    CONSTANT = 0
    COUNTING = 1
    LOADING = 2


class Space(IntEnum):
    """Where a BAR is."""

    MEMORY = 0
    PORTS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One measurement for the guests ``bell`` and ``bell3``: struct bell_entry.

    ``width`` bytes are stored at ``offset`` of ``bar``: ``count`` times with no interrupt wanted, then
    ``roundtrips`` times waiting for one each. What is stored is ``value``, or with ``value=None`` 1, 2, 3,
    ... ``counter`` and ``errors`` are offsets in BAR0 of the device's 64-bit counts of arrivals and of values
    out of order, if the guest is to read them.

    With ``loads``, a ring is a load of 4 bytes. ``notes`` is the offset of a 64-bit register that takes an address:
    the guest then rings ``roundtrips`` times more, and waits until the device has changed the word there. ``look``
    is the offset of a register that is told beforehand how many arrivals to look for, if the device polls.
    ``flush`` has the guest leave for the VMM after each batch, and each ring that is waited for.
    """

    bar: int
    offset: int
    count: int
    roundtrips: int = 0
    width: int = 4
    value: int | None = 0
    space: Space = Space.MEMORY
    counter: int | None = None
    errors: int | None = None
    loads: bool = False
    notes: int | None = None
    look: int | None = None
    flush: bool = False

    def pack(self) -> bytes:
        """The 56 bytes of struct bell_entry."""
        mode = Mode.LOADING if self.loads else Mode.COUNTING if self.value is None else Mode.CONSTANT
        offsets = (NONE if at is None else at for at in (self.counter, self.errors, self.notes, self.look))
        head = (self.space, self.bar, self.offset, self.width, mode, self.count, self.roundtrips)
        return _ENTRY.pack(*head, *offsets, self.flush, self.value or 0)


class RingResult(NamedTuple):
    """The result of one `Ring`: struct bell_result, with its samples."""

    rung: int
    received: int
    answered: int
    received_in_all: int
    disorder: int
    noted: int
    ring_ticks: tuple[int, ...]
    ram_ticks: tuple[int, ...]
    trip_ticks: tuple[int, ...]
    note_ticks: tuple[int, ...]


_ENTRY = struct.Struct("<12IQ")
_HEAD = struct.Struct("<II8x")
_RESULT = struct.Struct("<10Q")


def pack_rings(rings: Sequence[Ring]) -> bytes:
    """The parameter page for ``bell`` and ``bell3``."""
    return _HEAD.pack(_BELL_MAGIC, len(rings)) + b"".join(ring.pack() for ring in rings)


def unpack_rings(memory: Memory) -> list[RingResult]:
    """The results of all measurements that the guest finished. Raises ResultError if it never began."""
    magic, done = _HEAD.unpack(memory.read(RESULTS, _HEAD.size))
    _expect(magic, _BELL_MAGIC, "bell")
    if done > (RESULTS_END - RESULTS) // _RESULT.size:
        raise ResultError(f"bell claims {done} measurements: more than the results area holds")
    results = []
    for index in range(done):
        at = RESULTS + _HEAD.size + index * _RESULT.size
        *counts, rings, ram, trips, notes = _RESULT.unpack(memory.read(at, _RESULT.size))
        batches = -(-counts[0] // BATCH)
        lengths = (batches, batches, counts[2], counts[5])
        samples = (_samples(memory, at, n) for at, n in zip((rings, ram, trips, notes), lengths, strict=True))
        results.append(RingResult(*counts, *samples))
    return results


class EduInterrupts(NamedTuple):
    """What one kind of interrupt did: struct edu_interrupts."""

    factorial: int
    factorial_status: int
    to_device_status: int
    from_device_status: int
    raised_status: int
    raised_arrivals: int
    copied: int
    arrivals: int


class EduResults(NamedTuple):
    """What the guest ``edu`` saw: struct edu_results."""

    identification: int
    liveness: int
    intx: EduInterrupts
    msi: EduInterrupts


def pack_edu(number: int, length: int = 4096, unacknowledged: int = 3) -> bytes:
    """The parameter page for ``edu``: whose factorial to ask for, how many bytes to copy through the device.

    The INTx handler leaves ``unacknowledged`` interrupts alone before it acknowledges one, to see the level.
    """
    return struct.pack("<4I", _EDU_MAGIC, number, length, unacknowledged)


def unpack_edu(memory: Memory) -> EduResults:
    """The results of ``edu``; ResultError if it never began."""
    magic, identification, liveness, *counts = struct.unpack("<3I4x16I", memory.read(RESULTS, 80))
    _expect(magic, _EDU_MAGIC, "edu")
    return EduResults(identification, liveness, EduInterrupts(*counts[:8]), EduInterrupts(*counts[8:]))


class BarSeen(NamedTuple):
    """A BAR as the guest ``pci`` found it: struct pci_bar; size 0 = none."""

    address: int
    size: int
    flags: int


class PciResults(NamedTuple):
    """What the guest ``pci`` saw, the counts being the doorbell's after each step: struct pci_results."""

    functions: int
    bars: tuple[BarSeen, ...]
    old_place: int
    after_move: int
    at_old_place: int
    decoding_off: int
    decoding_on: int
    moved_back: int


def pack_pci(*, vendor: int, device: int, doorbell_bar: int, doorbell: int, counter: int, new_address: int) -> bytes:
    """The parameter page for ``pci``: whose doorbell to move, which BAR0 counter tells, and where to."""
    return struct.pack("<7I4x", _PCI_MAGIC, vendor, device, doorbell_bar, doorbell, counter, new_address)


def unpack_pci(memory: Memory) -> PciResults:
    """The results of ``pci``; ResultError if it never began."""
    data = memory.read(RESULTS, 200)
    magic, functions = struct.unpack_from("<II", data)
    _expect(magic, _PCI_MAGIC, "pci")
    bars = tuple(BarSeen(*fields) for fields in struct.iter_unpack("<QQI4x", data[8:152]))
    return PciResults(functions, bars, *struct.unpack_from("<6Q", data, 152))


class BlkResults(NamedTuple):
    """What the guest ``blk`` did: struct blk_results."""

    sectors: int
    polled: int
    waited: int
    wrong: int
    failed: int
    ticks: int


def pack_blk(*, polled: int, waited: int) -> bytes:
    """The parameter page for ``blk``: how many sectors to read, polling the queue and waiting for interrupts."""
    return struct.pack("<4I", _BLK_MAGIC, polled, waited, 0)


def unpack_blk(memory: Memory) -> BlkResults:
    """The results of ``blk``; ResultError if it never began."""
    magic, *counts = struct.unpack("<6IQ", memory.read(RESULTS, 32))
    _expect(magic, _BLK_MAGIC, "blk")
    return BlkResults(*counts)


class NvmeResults(NamedTuple):
    """What the guest ``nvme`` did: struct nvme_results."""

    block_size: int
    blocks: int
    polled: int
    waited: int
    wrong: int
    failed: int
    moves: int
    rings: int
    ticks: int


def pack_nvme(*, polled: int, waited: int, shadowed: bool = True) -> bytes:
    """The parameter page for ``nvme``: how many blocks to rewrite, polling its queue and waiting for interrupts.

    ``shadowed``: the guest keeps the I/O doorbells' values in its memory too (Doorbell Buffer Config).
    """
    return struct.pack("<4I", _NVME_MAGIC, polled, waited, shadowed)


def unpack_nvme(memory: Memory) -> NvmeResults:
    """The results of ``nvme``; ResultError if it never began."""
    magic, *counts = struct.unpack("<IIQ6IQ", memory.read(RESULTS, 48))
    _expect(magic, _NVME_MAGIC, "nvme")
    return NvmeResults(*counts)


def _samples(memory: Memory, address: int, count: int) -> tuple[int, ...]:
    if not RESULTS <= address <= address + 8 * count <= RESULTS_END:
        raise ResultError(f"{count} samples at {address:#x} lie outside the results area")
    return struct.unpack(f"<{count}Q", memory.read(address, 8 * count))


def _expect(magic: int, expected: int, guest: str) -> None:
    if magic != expected:
        raise ResultError(f"no results of {guest} at {RESULTS:#x}: found {magic:#010x}, expected {expected:#010x}")
