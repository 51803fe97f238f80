"""The numbers of virtio 1.2 that drivers know, and the limits of what a driver may cause."""

from __future__ import annotations

from enum import IntEnum, IntFlag

import pytest

from bellwire import GuestError
from bellwire.bundled import virtio_rng
from bellwire.bundled.virtio_blk import device as blk
from bellwire.bundled.virtio_blk import request
from bellwire.bundled.virtio_blk.at_once import AT_ONCE, ENOUGH
from bellwire.bundled.virtio_console import control as console_control
from bellwire.bundled.virtio_console import device as console
from bellwire.bundled.virtio_net import control, filter
from bellwire.bundled.virtio_net import device as net
from bellwire.network import features, link
from bellwire.network.link import HEADER_SIZE, Offload
from bellwire.virtio import chain, device, packed, split, status, transport, virtqueue
from pieces import cut
from virtio.driver import Driver
from virtio.echo import Echo

NUMBERS: dict[type[IntEnum | IntFlag], list[int]] = {
    status.Status: [0x01, 0x02, 0x04, 0x08, 0x40, 0x80],
    status.Feature: [28, 29, 32, 33, 34],
    status.Cause: [1, 2],
    transport.Structure: [1, 2, 3, 4, 5],
    request.Blk: [1, 2, 5, 6, 9, 11, 12, 13, 14],
    request.Type: [0, 1, 4, 8, 11, 13],
    request.Result: [0, 1, 2],
    console_control.Console: [0, 1, 2],
    console_control.Event: [0, 1, 2, 3, 4, 5, 6, 7],
    features.Net: [0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19, 20, 22, 23],
    filter.Mode: [0x01, 0x02, 0x04, 0x08, 0x10, 0x20],
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_drivers_know_a_thing_by_its_number(kind: type[IntEnum | IntFlag]) -> None:
    assert [int(member) for member in kind] == NUMBERS[kind]


def test_rings_are_laid_out_as_the_text_has_them() -> None:
    assert (chain.NEXT, chain.WRITE, chain.INDIRECT, chain.DESCRIPTOR.size) == (1, 2, 4, 16)
    assert (split.FLAGS, split.INDEX, split.RING, split.NO_INTERRUPT, split.NO_NOTIFY) == (0, 1, 2, 1, 1)
    assert (packed.AVAILABLE, packed.USED, packed.WRAP) == (0x80, 0x8000, 0x8000)
    assert (packed.OFFSET, packed.FLAGS, packed.ENABLE, packed.DISABLE, packed.AT_DESCRIPTOR) == (0, 1, 0, 1, 2)
    assert virtqueue.NO_VECTOR == 0xFFFF


def test_structures_lie_in_the_bar_where_the_documentation_has_them() -> None:
    found = (transport.COMMON, transport.ISR, transport.DEVICE, transport.NOTIFY)
    assert (transport.BAR, *found) == (0, 0x0000, 0x1000, 0x2000, 0x3000)
    sizes = (transport.COMMON_SIZE, transport.ISR_SIZE, transport.DEVICE_SIZE, transport.NOTIFY_SIZE)
    assert sizes == (0x40, 4, 0x1000, 512)
    assert (transport.MOST_QUEUES, transport.BELL, transport.PCI_CFG_DATA) == (128, 4, 13)
    assert (device.VENDOR, device.FIRST_ID) == (0x1AF4, 0x1040)


def test_what_a_driver_may_cause_is_bounded() -> None:
    assert (chain.MOST_DESCRIPTORS, chain.MOST_BYTES) == (1024, 64 << 20)
    assert (blk.MOST_QUEUES, blk.QUEUE_SIZE, blk.LARGEST_PIECE, blk.MOST_SECTORS) == (16, 256, 256 << 10, 1 << 22)
    assert (blk.ID_SIZE, AT_ONCE, ENOUGH, blk.TOGETHER) == (20, 1 << 20, 512 << 10, 16)
    assert (request.SECTOR, request.MOST_SEGMENTS, request.UNMAP) == (512, 256, 1)
    assert (request.HEADER.size, request.SEGMENT.size) == (16, 16)
    assert (console.MOST_PORTS, console.MOST_MESSAGES, console_control.LARGEST_NAME) == (16, 64, 64)
    assert (control.LARGEST, filter.MOST_ADDRESSES, filter.VLANS) == (1 << 16, 64, 4096)
    assert virtio_rng.LARGEST == 4096
    assert (net.MOST_PAIRS, net.BATCH, net.VirtioNet.largest_queue) == (8, 256, 1024)


def test_a_card_looks_at_the_header_both_addresses_and_a_tag() -> None:
    assert net.HEAD == HEADER_SIZE + 6 + 6 + 2 + 2 + 2
    numbers = link.NUM_BUFFERS
    assert (numbers.start, numbers.stop, net.LINK_UP) == (10, 12, 1)


def test_commands_of_a_card_have_the_classes_of_the_text() -> None:
    assert (control.RX, control.MAC, control.VLAN, control.MQ, control.GUEST_OFFLOADS) == (0, 1, 2, 4, 5)
    assert (control.OK, control.ERROR) == (b"\0", b"\1")
    assert (control.COUNT.size, control.SHORT.size, control.OFFLOADS.size) == (4, 2, 8)
    assert [int(mode) for mode in control.MODES] == [1, 2, 4, 8, 16, 32]
    assert HEADER_SIZE == 12


def test_offloads_need_checksums_and_marks_need_segments() -> None:
    feature = features.Net
    for given, expected in (
        ({feature.GUEST_TSO4, feature.GUEST_TSO6}, Offload(0)),
        ({feature.GUEST_CSUM}, Offload.CHECKSUM),
        ({feature.GUEST_CSUM, feature.GUEST_ECN}, Offload.CHECKSUM),
        ({feature.GUEST_CSUM, feature.GUEST_TSO4, feature.GUEST_ECN}, Offload.CHECKSUM | Offload.TSO4 | Offload.ECN),
        ({feature.GUEST_CSUM, feature.GUEST_TSO6}, Offload.CHECKSUM | Offload.TSO6),
        ({feature.CSUM, feature.HOST_TSO4}, Offload(0)),
    ):
        assert features.taken_over(given) == expected


@pytest.mark.parametrize(("index", "role"), [
    (0, (0, False)), (1, (0, True)), (2, (None, False)), (3, (None, True)), (4, (1, False)), (5, (1, True)),
    (6, (2, False)), (33, (15, True)),
])  # fmt: skip
def test_queues_of_a_console_have_their_roles(index: int, role: tuple[int | None, bool]) -> None:
    assert console_control.queue_role(index) == role


@pytest.mark.parametrize(("kind", "vectors"), [(console.VirtioConsole, 35), (blk.VirtioBlk, 17), (net.VirtioNet, 18)])
def test_each_queue_has_a_vector_and_the_configuration_one(kind: type[device.VirtioDevice], vectors: int) -> None:
    msix = kind.layout.msix
    assert msix is not None
    assert msix.count == kind.most_queues + 1 == vectors


@pytest.mark.parametrize("kind", [console.VirtioConsole, blk.VirtioBlk, net.VirtioNet])
def test_what_a_device_type_declares_for_its_queues_has_its_name(kind: type[device.VirtioDevice]) -> None:
    for name in ("irq", "queue_state"):
        assert str(vars(kind)[name]) == f"{kind.__name__}.{name}"


def test_a_table_has_1_to_1024_descriptors() -> None:
    with Driver(Echo) as driver:
        window = chain.Window(driver.device.virtqueues[0], driver.device.dma)
        for address in (0x1000, 0x1010, len(driver.memory) - 16 * 1024):
            for count in (1, 2, 1024):
                assert len(window.table(address, 16 * count)) == 16 * count
        for length in (0, 8, 15, 17, 1025 * 16):
            with pytest.raises(GuestError, match=f"an indirect table of {length} bytes"):
                window.table(0x1000, length)
        with pytest.raises(GuestError, match="mapped nothing there"):
            window.table(len(driver.memory) - 16, 32)


@pytest.mark.parametrize("pieces", [[], [2], [1, 2, 3]], ids=["whole", "cut", "in pieces"])
def test_a_chain_has_the_bytes_of_its_descriptors(pieces: list[int]) -> None:
    with Driver(Echo, memory=1 << 20) as driver:
        memory = cut(driver.guest, pieces)
        last = len(memory)
        memory[:] = (bytes(range(251)) * (last // 251 + 1))[:last]
        window = chain.Window(driver.device.virtqueues[0], driver.device.dma)
        parts = [(0, 5, 0, 1), (0x1FFE, 4, 0, 2), (last - 3, 3, 0, 3), (9, 0, 0, 4), (7, 2, 2, 5), (0x2FFF, 2, 2, 6),
                 (last - 1, 1, 2, 7), (3, 0, 2, 0)]  # fmt: skip
        for _ in range(2):
            made = window.chain(3, 4, parts)
            assert (made.id, made.span, made.size, made.room, made.written) == (3, 4, 12, 5, 0)
            expected = [bytes(memory[at : at + size]) for at, size, _, _ in parts]
            assert made.read() == b"".join(expected[:4])
            assert b"".join(made.writable) == b"".join(expected[4:])
            assert all(view.readonly for view in made.readable)
            assert all(map(len, (*made.readable, *made.writable)))
        for wrong in ([(last - 3, 4, 0, 0)], [(last, 1, 2, 0)], [(0, 1, 2, 1), (0, 1, 0, 0)]):
            with pytest.raises(GuestError):
                window.chain(0, 1, wrong)


def test_a_buffer_has_at_most_64_mib() -> None:
    with Driver(Echo, memory=4 << 20) as driver:
        window = chain.Window(driver.device.virtqueues[0], driver.device.dma)
        whole = (0, 4 << 20, 0, 0)
        assert window.chain(0, 1, [whole] * 16).size == 64 << 20
        with pytest.raises(GuestError, match="a buffer of more than 67108864 bytes"):
            window.chain(0, 1, [*[whole] * 16, (0, 1, 2, 0)])


def test_what_is_written_goes_on_where_it_has_ended() -> None:
    with Driver(Echo) as driver:
        window = chain.Window(driver.device.virtqueues[0], driver.device.dma)
        driver.memory[:16] = b"-" * 16
        made = window.chain(0, 1, [(0, 3, 2, 1), (4, 1, 2, 2), (6, 4, 2, 0)])
        for data in (b"", b"a", b"bcd", b"e", b"fgh"):
            made.write(data)
        assert (bytes(driver.memory[:11]), made.written) == (b"abc-d-efgh-", 8)
        with pytest.raises(GuestError, match="a buffer has 8 bytes to write, 9 needed"):
            made.write(b"i")
        assert made.written == 8


@pytest.mark.parametrize(
    ("event", "before", "now", "passed"),
    [
        (5, 5, 6, True), (5, 4, 6, True), (5, 5, 5, False), (5, 6, 7, False), (5, 4, 5, False), (5, 0, 100, True),
        (0xFFFF, 0xFFFF, 0, True), (0xFFFF, 0xFFF0, 3, True), (3, 0xFFF0, 3, False), (2, 0xFFF0, 3, True),
        (0xFFEF, 0xFFF0, 3, False),
    ],
)  # fmt: skip
def test_an_event_lies_between_two_positions_or_not(event: int, before: int, now: int, passed: bool) -> None:
    assert split.crossed(event, before, now) is passed


def test_a_part_of_a_buffer_in_pieces_has_its_bytes() -> None:
    whole = b"abcdefgh"
    views = [memoryview(whole[first:last]) for first, last in ((0, 3), (3, 4), (4, 8))]
    for start in range(9):
        for stop in range(start, 10):
            found = chain.part(views, start, stop)
            assert b"".join(found) == whole[start:stop]
            assert all(map(len, found)) or start == stop
