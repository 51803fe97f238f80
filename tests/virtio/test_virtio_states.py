"""What the state of a virtqueue can be: after a restore, when it is enabled, and for a driver that chooses features."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

import pytest

from bellwire import GuestError, StateError
from bellwire.testing import Guest
from bellwire.virtio import Feature, Virtqueue
from bellwire.virtio.packed import PackedRing
from bellwire.virtio.status import Status
from virtio.echo import COLOUR, Echo

PACKED = 1 << Feature.RING_PACKED


@pytest.fixture
def guest() -> Iterator[Guest[Echo]]:
    with Guest(Echo, memory=1 << 16) as guest:
        yield guest


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("fields", "split", "packed_too"),
    [
        ({}, True, True),
        ({"size": 1}, True, True),
        ({"size": 64}, True, True),
        ({"size": 65}, False, False),
        ({"size": 128}, False, False),
        ({"size": 0}, False, False),
        ({"size": 3}, False, True),
        ({"next": 7}, True, True),
        ({"next": 8}, True, False),
        ({"used": 7}, True, True),
        ({"used": 8}, True, False),
        ({"next": 0xFFFF, "used": 0xFFFF}, True, False),
        ({"out": 8}, True, True),
        ({"out": 9}, False, False),
        ({"vector": 3}, True, True),
        ({"vector": 4}, False, False),
        ({"vector": 0xFFFF}, True, True),
        ({"vector": 0xFFFE}, False, False),
        ({"enabled": 2}, False, False),
        ({"next_wrap": 1, "used_wrap": 1}, True, True),
        ({"next_wrap": 2}, False, False),
        ({"used_wrap": 2}, False, False),
        ({"enabled": 0, "size": 999, "out": 999}, True, True),
        ({"enabled": 0, "vector": 4}, False, False),
    ],
)
def test_a_restored_queue_is_one_that_there_can_be(
    guest: Guest[Echo], fields: dict[str, int], split: bool, packed_too: bool, packed: bool
) -> None:
    device = guest.device
    device.accepted = PACKED if packed else 0
    queue = device.virtqueues[1]
    for name, value in ({"enabled": 1, "size": 8} | fields).items():
        setattr(queue, name, value)
    possible = packed_too if packed else split
    assert queue.is_possible is possible
    if possible:
        device.check_state()
    else:
        with pytest.raises(StateError, match="the snapshot has queue 1"):
            device.check_state()


@pytest.mark.parametrize(
    ("accepted", "agreed", "possible"),
    [
        (0, True, True),
        (1 << COLOUR | 1 << Feature.VERSION_1, True, True),
        (1 << (COLOUR + 1), True, False),
        (1 << (COLOUR + 1), False, True),
        (1 << 63, False, True),
        (1 << 64, False, False),
        (-1, False, False),
    ],
)
def test_restored_features_are_those_on_offer_once_they_are_agreed_on(
    guest: Guest[Echo], accepted: int, agreed: bool, possible: bool
) -> None:
    device = guest.device
    device.accepted = accepted
    device.device_status = Status.FEATURES_OK if agreed else Status(0)
    if possible:
        device.check_state()
    else:
        with pytest.raises(StateError, match="the snapshot has features"):
            device.check_state()


@pytest.mark.parametrize(
    ("fields", "split", "packed"),
    [
        ({"size": 1}, True, True),
        ({"size": 64}, True, True),
        ({"size": 0}, False, False),
        ({"size": 65}, False, False),
        ({"size": 6}, False, True),
        ({"desc": 8}, False, False),
        ({"desc": 16}, True, True),
        ({"driver": 2}, True, False),
        ({"driver": 1}, False, False),
        ({"driver": 4}, True, True),
        ({"device_area": 2}, False, False),
        ({"device_area": 4}, True, True),
    ],
)
@pytest.mark.parametrize("ring", [set(), {Feature.RING_PACKED}])
def test_a_ring_is_enabled_if_its_size_and_its_places_can_be(
    guest: Guest[Echo], fields: dict[str, int], split: bool, packed: bool, ring: set[int]
) -> None:
    device = guest.device
    device.negotiated = frozenset(ring)
    queue = device.virtqueues[0]
    queue.next = queue.used = queue.out = 5
    for name, value in fields.items():
        setattr(queue, name, value)
    if packed if ring else split:
        queue.enable()
        assert (queue.enabled, queue.next_wrap, queue.used_wrap) == (1, 1, 1)
        assert (queue.next, queue.used, queue.out) == (0, 0, 0)
        assert Status.NEEDS_RESET not in device.device_status
    else:
        with pytest.raises(GuestError, match=r"queue 0: .*the device needs a reset"):
            queue.enable()
        assert (queue.enabled, device.device_status) == (0, Status.NEEDS_RESET)


def test_a_cleared_queue_is_of_the_largest_size_and_has_no_vector(guest: Guest[Echo]) -> None:
    queue = guest.device.virtqueues[2]
    ctypes.memset(ctypes.addressof(queue), 0xFF, ctypes.sizeof(queue))
    queue.clear(64)
    values = {name: getattr(queue, name) for name, _ in Virtqueue._fields_}
    assert values == dict.fromkeys(values, 0) | {"size": 64, "vector": 0xFFFF}
    assert str(queue) == "queue 2"


def test_a_device_that_is_broken_already_is_not_broken_again(guest: Guest[Echo]) -> None:
    device = guest.device
    device.running = True
    assert str(device.broken("no")) == "no; the device needs a reset"
    assert (device.running, device.config_generation) == (False, 1)
    device.running = True
    assert str(device.broken("no")) == "no"
    assert (device.running, device.config_generation) == (True, 1)


def restored(guest: Guest[Echo], status: Status) -> list[str]:
    device = guest.device
    device.device_status, device.accepted = status, 1 << COLOUR
    device.life.clear()
    device.restored()
    return [*device.life, *("running" for _ in range(device.running)), *map(str, sorted(device.negotiated))]


@pytest.mark.parametrize(
    ("status", "life"),
    [
        (Status(0), ["stopped"]),
        (Status.FEATURES_OK, ["stopped", str(COLOUR)]),
        (Status.FEATURES_OK | Status.DRIVER_OK, ["stopped", "started", "running", str(COLOUR)]),
        (Status.FEATURES_OK | Status.DRIVER_OK | Status.NEEDS_RESET, ["stopped", str(COLOUR)]),
    ],
)
def test_a_restored_device_goes_on_where_it_was(guest: Guest[Echo], status: Status, life: list[str]) -> None:
    assert restored(guest, status) == life


def test_a_restored_device_looks_at_every_queue(guest: Guest[Echo], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(guest.device, "attend", lambda queue: seen.append(queue.index))
    restored(guest, Status.FEATURES_OK)
    guest.advance()
    assert seen == []
    restored(guest, Status.FEATURES_OK | Status.DRIVER_OK)
    guest.advance()
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("select", "status", "accepted"),
    [
        (0, Status(0), 0x1111_1111_8765_4320),
        (1, Status(0), 0x8765_4320_2222_2222),
        (2, Status(0), 0x1111_1111_2222_2222),
        (0, Status.FEATURES_OK, 0x1111_1111_2222_2222),
        (0, Status.DRIVER, 0x1111_1111_8765_4320),
    ],
)
def test_features_are_accepted_word_by_word(guest: Guest[Echo], select: int, status: Status, accepted: int) -> None:
    device = guest.device
    device.accepted = 0x1111_1111_2222_2222
    device.driver_feature_select, device.device_status = select, status
    device.accept_features(0x8765_4320)
    assert device.accepted == accepted


@pytest.mark.parametrize(
    ("bar", "offset", "length", "place"),
    [
        (0, 0, 4, (0, 0, 4)),
        (0, 0x3FFC, 4, (0, 0x3FFC, 4)),
        (0, 0x3FFE, 4, None),
        (0, 0x4000, 1, None),
        (0, 0x3FFF, 1, (0, 0x3FFF, 1)),
        (0, 1, 2, None),
        (0, 2, 2, (0, 2, 2)),
        (0, 0, 3, None),
        (0, 0, 8, None),
        (0, 0, 0, None),
        (5, 0, 4, (5, 0, 4)),
        (1, 0, 1, None),
        (6, 0, 1, None),
    ],
)
def test_a_window_shows_aligned_words_of_a_bar(
    guest: Guest[Echo], bar: int, offset: int, length: int, place: tuple[int, int, int] | None
) -> None:
    device = guest.device
    device.pci_cfg[1] = bar
    device.pci_cfg[5:13] = offset.to_bytes(4, "little") + length.to_bytes(4, "little")
    assert device.behind_pci_cfg() == place


def test_a_turn_is_asked_for_once(guest: Guest[Echo], monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def attend(queue: Virtqueue) -> None:
        turns.append(queue.index)

    monkeypatch.setattr(guest.device, "attend", attend)
    queue = guest.device.virtqueues[1]
    for expected in ([1], [1, 1]):
        queue.ask_for_turn()
        queue.ask_for_turn()
        guest.advance()
        assert turns == expected


def test_a_doorbell_rings_its_queue_and_none_beyond_the_last(
    guest: Guest[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(guest.device, "attend", lambda queue: seen.append(queue.index))
    for offset in (0, 4, 8, 12, 16):
        guest.device.rung(offset)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_packed_ring_asks_for_notifications_as_was_agreed(guest: Guest[Echo], event_idx: bool) -> None:
    queue = guest.device.virtqueues[0]
    queue.size, queue.desc, queue.driver, queue.device_area = 8, 0x1000, 0x2000, 0x3000
    ring = PackedRing(queue, guest.device.dma, event_idx=event_idx)

    def asked() -> tuple[int, int]:
        offset, flags = struct.unpack_from("<HH", guest.memory, 0x3000)
        return offset, flags

    ring.silence()
    assert asked() == (0, 1)
    for place, wrap in ((5, 1), (6, 0)):
        queue.next, queue.next_wrap = place, wrap
        ring.listen()
        assert asked() == ((place | wrap << 15, 2) if event_idx else (0, 0))


@pytest.mark.parametrize(
    ("wrap", "flags", "there"), [(1, 0x80, True), (1, 0, False), (0, 0x8000, True), (0, 0x80, False)]
)
def test_a_packed_ring_says_if_a_buffer_is_there_already(
    guest: Guest[Echo], wrap: int, flags: int, there: bool
) -> None:
    queue = guest.device.virtqueues[0]
    queue.size, queue.desc, queue.driver, queue.device_area = 8, 0x1000, 0x2000, 0x3000
    queue.next, queue.next_wrap = 3, wrap
    ring = PackedRing(queue, guest.device.dma, event_idx=False)
    struct.pack_into("<H", guest.memory, 0x1000 + 16 * 3 + 14, flags)
    assert ring.listen() is there


def test_no_driver_has_accepted_anything_or_runs_at_first(guest: Guest[Echo]) -> None:
    device = guest.device
    assert (device.accepted, device.negotiated, device.running) == (0, frozenset(), False)


def test_a_reset_ends_the_run_of_a_driver(guest: Guest[Echo]) -> None:
    device = guest.device
    device.running, device.negotiated, device.accepted = True, frozenset({COLOUR}), 1 << COLOUR
    device.renew()
    assert (device.accepted, device.negotiated, device.running) == (0, frozenset(), False)


def test_a_driver_may_accept_all_that_is_offered(guest: Guest[Echo]) -> None:
    device = guest.device
    device.accepted = sum(1 << bit for bit in device.offered())
    assert device.agree_on_features()
    assert device.negotiated == device.offered()
    device.device_status = Status.FEATURES_OK
    device.check_state()


def test_registers_of_a_queue_that_is_not_there_are_0(guest: Guest[Echo]) -> None:
    """§4.1.4.3.1."""
    device = guest.device
    names = ("queue_msix_vector", "queue_enable", "queue_notify_off", "queue_desc", "queue_driver", "queue_device")
    for index, values in ((2, (0xFFFF, 0, 2, 0, 0, 0)), (3, (0, 0, 0, 0, 0, 0))):
        device.queue_select = index
        device.show_queue()
        assert tuple(int(getattr(device, name)) for name in names) == values


def test_what_was_not_published_is_forgotten_by_a_restore(guest: Guest[Echo]) -> None:
    device = guest.device
    queue = device.virtqueues[0]
    queue.size, queue.desc, queue.driver, queue.device_area = 8, 0x1000, 0x2000, 0x3000
    queue.enable()
    device.running = True
    struct.pack_into("<QI", guest.memory, 0x1000, 0x5000, 4)
    struct.pack_into("<HH", guest.memory, 0x2000, 0, 1)
    device.device_status, device.accepted = Status.FEATURES_OK | Status.DRIVER_OK, 1 << COLOUR
    snapshot = guest.snapshot()
    (chain,) = queue.take()
    chain.done(0)
    queue.ask_for_turn()
    guest.restore(snapshot)
    queue.flush()
    assert struct.unpack_from("<HH", guest.memory, 0x3000) == (0, 0)
    assert [chain.read() for chain in queue.take(2)] == [bytes(4)]


def test_a_restored_journal_that_begins_beyond_a_packed_ring_breaks_the_device(guest: Guest[Echo]) -> None:
    device = guest.device
    queue = device.virtqueues[0]
    queue.size, queue.desc, queue.driver, queue.device_area = 8, 0x1000, 0x2000, 0x3000
    queue.enable()
    device.running = True
    device.device_status, device.accepted = Status.FEATURES_OK | Status.DRIVER_OK, PACKED
    queue.journal.settle(0x7FFF)
    guest.restore(guest.snapshot())
    with pytest.raises(GuestError, match="position 32767 in a ring of 8"):
        queue.take()
    assert Status.NEEDS_RESET in device.device_status


def test_a_closed_device_has_no_queues() -> None:
    with Guest(Echo) as guest:
        assert len(guest.device.virtqueues) == 3
    assert guest.device.virtqueues == []
