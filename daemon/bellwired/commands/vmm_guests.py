"""Parameters for the bundled micro guests of ``bellwire vmm``, and their results in words."""

from __future__ import annotations

from bellwire.bundled.bell import Bell
from bellwire_vmm.guests.layout import (
    Memory,
    pack_blk,
    pack_edu,
    pack_nvme,
    pack_pci,
    pack_rings,
    unpack_blk,
    unpack_edu,
    unpack_nvme,
    unpack_pci,
    unpack_rings,
)
from bellwired.demo.ways import WAYS

RINGS, ROUNDTRIPS = 1000, 10
NUMBER = 10
ELSEWHERE = 0xD000_0000


def parameters(guest: str) -> bytes:
    """The parameter page for a guest by name; empty for one of the user's own."""
    if guest in ("bell", "bell3"):
        return pack_rings([way.ring(RINGS, ROUNDTRIPS) for way in WAYS])
    if guest == "edu":
        return pack_edu(NUMBER)
    if guest == "pci":
        return pack_pci(
            vendor=0x1234,
            device=0xBE11,
            doorbell_bar=Bell.bells.index,
            doorbell=Bell.wildcard.offset,
            counter=Bell.wildcard_count.offset,
            new_address=ELSEWHERE,
        )
    if guest == "blk":
        return pack_blk(polled=RINGS, waited=ROUNDTRIPS)
    if guest == "nvme":
        return pack_nvme(polled=RINGS, waited=ROUNDTRIPS)
    return b""


def report(guest: str, memory: Memory) -> list[str]:
    """The results of a bundled guest, in lines."""
    if guest in ("bell", "bell3"):
        return [
            f"{way.name}: {result.rung} rung, {result.received} received, {result.answered} interrupts, "
            f"{result.disorder} values out of order"
            for way, result in zip(WAYS, unpack_rings(memory), strict=False)
        ]
    if guest == "edu":
        found = unpack_edu(memory)
        lines = [f"identification {found.identification:#010x}, liveness {found.liveness:#010x}"]
        for label, kind in (("INTx", found.intx), ("MSI", found.msi)):
            lines.append(
                f"{label}: {NUMBER}! = {kind.factorial}, {kind.copied} bytes copied through the device, "
                f"{kind.arrivals} interrupts"
            )
        return lines
    if guest == "pci":
        seen = unpack_pci(memory)
        lines = [f"{seen.functions} functions on the bus"]
        for number, bar in enumerate(seen.bars):
            if bar.size:
                space = "I/O ports" if bar.flags & 1 else "memory"
                lines.append(f"BAR{number}: {bar.size:#x} bytes of {space} at {bar.address:#x}")
        moves = seen.old_place, seen.after_move, seen.at_old_place, seen.decoding_off, seen.decoding_on, seen.moved_back
        lines.append(f"rings counted as the doorbell's BAR moved: {', '.join(map(str, moves))}")
        return lines
    if guest == "blk":
        disk = unpack_blk(memory)
        return [
            f"{disk.sectors} sectors; {disk.polled} read by polling, {disk.waited} by interrupt, "
            f"{disk.wrong} not numbered, {disk.failed} failed"
        ]
    if guest == "nvme":
        nvme = unpack_nvme(memory)
        return [
            f"{nvme.blocks} blocks of {nvme.block_size} bytes; {nvme.polled} rewritten by polling, {nvme.waited} by "
            f"interrupt, {nvme.wrong} not as written, {nvme.failed} commands failed; "
            f"{nvme.rings} rings for {nvme.moves} moves of a tail or head"
        ]
    return []
