"""A driver maps, unmaps and maps elsewhere while requests are under way: none is lost, and no old page is touched."""

from __future__ import annotations

import errno
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.request import Blk
from joining import PAGE, far
from vfio_user import RemoteError
from virtio.conftest import KINDS
from virtio.driver import READY
from virtio.rings import Part
from virtio.test_virtio_blk_unmapped import OUT, SECTOR, STALE, FarDriver

IN = 0
LOW = 16 * PAGE
"""Memory from 0 on that has rings, headers and status bytes: one map. Behind it, each page of data is a map."""
PAGES = range(16, 24)
FILE = 64
"""Pages of the file, of which those of data may be any from 16 on."""
SECTORS = 32
GONE = b"\xee" * PAGE


class Remapping(RuleBasedStateMachine):
    """``ring`` has the features of the queue; with ``direct`` the kernel moves the data."""

    ring: frozenset[int]
    direct: bool

    def __init__(self) -> None:
        super().__init__()
        folder = tempfile.TemporaryDirectory()
        self.image = Path(folder.name) / "image"
        self.image.write_bytes(bytes(SECTORS * SECTOR))
        self.far = far(VirtioBlk(image=self.image, direct=self.direct), FILE * PAGE)
        self.folder = folder
        self.guest = self.far.__enter__()
        self.disk = bytearray(SECTORS * SECTOR)
        self.places: dict[int, int] = {}
        """The page of the file that each page of data lies in."""
        self.under_way: list[tuple[int, int, int, bytes]] = []
        """Sector, status byte, page of a read or 0, and what it must have then."""
        self.guest.memory[LOW:] = GONE * (FILE - 16)
        self.guest.map(0, LOW)
        driver = FarDriver(self.guest)
        driver.start({*self.ring, Blk.FLUSH})
        self.queue = driver.queues[0]
        self.low_is_mapped = True

    def teardown(self) -> None:
        if not self.low_is_mapped:
            self.map_low()
        self.unmap_low()
        assert self.guest.read(0, 0x14, 1) == READY
        self.far.__exit__(None, None, None)
        assert self.image.read_bytes() == self.disk
        self.folder.cleanup()

    def content(self, page: int) -> memoryview:
        at = self.places[page] * PAGE
        return self.guest.memory[at : at + PAGE]

    @rule(page=st.sampled_from(PAGES), place=st.integers(16, FILE - 1))
    def map(self, page: int, place: int) -> None:
        if page in self.places:
            with pytest.raises(RemoteError) as refused:
                self.guest.client.dma_map(page * PAGE, PAGE, self.guest.fd, place * PAGE)
            assert refused.value.errno == errno.EEXIST
        elif place not in self.places.values():
            self.guest.client.dma_map(page * PAGE, PAGE, self.guest.fd, place * PAGE)
            self.places[page] = place

    @precondition(lambda self: self.low_is_mapped and len(self.under_way) < 4)
    @rule(data=st.data(), write=st.booleans(), fill=st.integers(1, 200))
    def request(self, data: st.DataObject, write: bool, fill: int) -> None:
        busy = {page for _, _, page, _ in self.under_way}
        pages = sorted(page for page in self.places if page not in busy)
        sectors = [n for n in range(SECTORS) if n not in [sector for sector, *_ in self.under_way]]
        if not pages:
            return
        page, sector = data.draw(st.sampled_from(pages)), data.draw(st.sampled_from(sectors))
        header = self.queue.driver.store(struct.pack("<IIQ", OUT if write else IN, 0, sector))
        status = self.queue.driver.store(bytes([STALE]))
        if write:
            self.content(page)[:SECTOR] = bytes([fill]) * SECTOR
            self.disk[sector * SECTOR : (sector + 1) * SECTOR] = bytes([fill]) * SECTOR
        expected = bytes(self.disk[sector * SECTOR : (sector + 1) * SECTOR])
        parts = [Part(header, 16, False), Part(page * PAGE, SECTOR, not write), Part(status, 1, True)]
        self.queue.publish(parts, indirect=False)
        self.queue.kick()
        self.under_way.append((sector, status, page, expected))

    @rule(first=st.sampled_from(PAGES), count=st.integers(1, len(PAGES)))
    def unmap(self, first: int, count: int) -> None:
        """Nothing has to end for a range without memory."""
        self.guest.unmap(first * PAGE, count * PAGE)
        taken = [page for page in range(first, first + count) if page in self.places]
        if taken:
            self.all_have_ended()
        for page in taken:
            self.content(page)[:] = GONE
            del self.places[page]

    @precondition(lambda self: self.low_is_mapped)
    @rule()
    def unmap_low(self) -> None:
        self.guest.unmap(0, LOW)
        self.all_have_ended()
        self.low_is_mapped = False

    @precondition(lambda self: not self.low_is_mapped)
    @rule()
    def map_low(self) -> None:
        self.guest.map(0, LOW)
        self.low_is_mapped = True

    @precondition(lambda self: self.low_is_mapped)
    @rule(start=st.integers(1, 15))
    def cut(self, start: int) -> None:
        """A range that would cut a map changes nothing."""
        with pytest.raises(RemoteError) as refused:
            self.guest.unmap(start * PAGE, 32 * PAGE)
        assert refused.value.errno == errno.EINVAL

    @rule()
    def turn(self) -> None:
        self.guest.step()

    def all_have_ended(self) -> None:
        if self.low_is_mapped:
            assert len(self.queue.used()) == len(self.under_way)
        for _, status, page, expected in self.under_way:
            assert self.guest.memory[status] == 0
            assert self.content(page)[:SECTOR] == expected
        self.under_way.clear()

    @invariant()
    def no_old_page_is_touched(self) -> None:
        held = set(self.places.values())
        for place in range(16, FILE):
            if place not in held:
                assert self.guest.memory[place * PAGE : (place + 1) * PAGE] == GONE, place


@pytest.mark.slow
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_requests_end_once_and_in_the_memory_that_they_were_given(ring: set[int], direct: bool) -> None:
    kind = type("Remapping", (Remapping,), {"ring": frozenset(ring), "direct": direct})
    run_state_machine_as_test(kind, settings=settings(max_examples=15, stateful_step_count=30, deadline=None))
