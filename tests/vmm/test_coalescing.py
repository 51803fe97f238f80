"""Zones of BARs whose writes wait for the next exit, on real KVM: all arrive, in order, many to a message."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bellwire.bundled.bell import Bell
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.guests.layout import Phase, Ring, pack_rings, unpack_rings
from bellwire_vmm.vmm import Machine
from kvm_ioctls import CoalescedRing, Exit, IoctlError, Vcpu, Vm
from vfio_user import Client, RegionWrite, VfioUserError
from vmm import toy
from vmm.program import Outcome, Program, bar, execute
from vmm.sdk import working
from vmm.toy import EXPRESS_AT, Toy, served

pytestmark = pytest.mark.kvm

Serve = Callable[[Toy], Client]
Run = Callable[[Program], Outcome]

MIB = 1 << 20
RINGS = 4096
BEGIN, END = 1, 2
PLAIN = (0, toy.PLAIN, 4)
COMMAND, BAR0 = 0x04, 0x10
MEMORY = 2
ELSEWHERE = 0xD000_0000
ONES = 0xFFFF_FFFF


class Recorder(Client):
    """Notes what was posted: the offsets of each message."""

    def __init__(self, other: Client) -> None:
        self.__dict__ = other.__dict__
        self.posts: list[list[int]] = []

    def write(self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False) -> None:
        if posted:
            self.posts.append([offset])
        super().write(region, offset, data, posted=posted)

    def write_multi(self, writes: Sequence[RegionWrite], *, posted: bool = False) -> int:
        assert posted
        self.posts.append([write.offset for write in writes])
        return super().write_multi(writes, posted=posted)


def counting(at: int, times: int) -> Program:
    """A program that stores 1, 2, ... at an address."""
    program = Program()
    for value in range(1, times + 1):
        program.store(at, value)
    return program


def plain_counts(device: ProxyDevice, program: Program) -> Program:
    """Let a program read how many writes to PLAIN have come, and how many out of order."""
    counts = bar(device, 0)
    return program.load(counts + toy.PLAIN_COUNT, 8).load(counts + toy.PLAIN_ERRORS, 8)


@pytest.mark.parametrize("guest", ["bell", "bell3"])
def test_4096_writes_arrive_in_order_with_one_exit_for_170(machine: Machine, guest: str) -> None:
    ring = Ring(bar=0, offset=0x10, count=RINGS, counter=0x68, errors=0x90, value=None)
    with working(Bell) as sock, machine:
        device = machine.plug(Client(sock), coalesced=[(0, 0x10, 4)])
        machine.load(guest, pack_rings([ring]))
        run = machine.run(60)
        assert run.ok, run
        (result,) = unpack_rings(machine.memory)
        assert (result.rung, result.received, result.disorder) == (RINGS, RINGS, 0)
        begin, end = (
            next(mark for mark in run.marks if mark.value == phase) for phase in (Phase.RINGS, Phase.RINGS_END)
        )
        exits = end.mmio_exits - begin.mmio_exits
        fewest = RINGS // (CoalescedRing.ROOM + 1)
        assert exits in (fewest, fewest + 1), "one more where the kernel takes the ring for full early"
        assert end.runs - begin.runs - 1 == exits
        assert device.accesses[1] > RINGS


def test_what_waits_goes_out_as_one_posted_message(machine: Machine, serve: Serve, run: Run) -> None:
    client = Recorder(serve(Toy()))
    device = machine.plug(client, coalesced=[PLAIN])
    client.posts.clear()
    stores = CoalescedRing.ROOM + 3
    run(counting(bar(device, 0) + toy.PLAIN, stores))
    held = len(client.posts[0])
    assert held in (CoalescedRing.ROOM, CoalescedRing.EARLY)
    assert client.posts == [[toy.PLAIN] * held, [toy.PLAIN], [toy.PLAIN] * (stores - held - 1)]


def test_a_read_sees_every_write_before_it(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    at, counts = bar(device, 0) + toy.PLAIN, bar(device, 0)
    program = Program()
    for value in range(1, 21):
        program.store(at, value).load(counts + toy.PLAIN_COUNT, 8)
    assert run(plain_counts(device, program)).values == (*range(1, 21), 20, 0)


def test_other_writes_go_out_behind_those_that_wait(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(served := Toy()), coalesced=[PLAIN])
    at = bar(device, 0)
    program = Program().store(at + toy.PLAIN, 1).store(at + 0x14, 2).store(at + toy.PLAIN, 3)
    program.out(bar(device, 2) + toy.PIO_PLAIN, 4).store(at + toy.PLAIN, 5).config(device.slot, 0x44, 6)
    run(program)
    order = [int.from_bytes(data, "little") for _, _, data in served.messages]
    assert order[-6:] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("size", "value"), [(1, 0xA1), (2, 0xA1A2), (4, 0xA1A2_A3A4), (8, 0xA1A2_A3A4_A5A6_A7A8)])
def test_a_write_that_waited_keeps_its_width_and_value(
    machine: Machine, serve: Serve, run: Run, size: int, value: int
) -> None:
    device = machine.plug(serve(served := Toy()), coalesced=[(1, 0x40, 8)])
    outcome = run(Program().mark(BEGIN).store(bar(device, 1) + 0x40, value, size).mark(END).load(bar(device, 0)))
    assert outcome.exits(BEGIN, END) == (0, 0)
    assert (1, 0x40, value.to_bytes(size, "little")) in served.messages


def test_writes_within_zones_and_across_their_ends_arrive_in_order(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(served := Toy()), coalesced=[(1, 0x40, 4), (1, 0x44, 4), (1, 0x50, 0x10)])
    at = bar(device, 1)
    program = Program().store(at + 0x40, 1).store(at + 0x42, 2).store(at + 0x44, 3).store(at + 0x3E, 4)
    run(program.store(at + 0x50, 5, 8).store(at + 0x5C, 6, 8).load(bar(device, 0)))
    assert [message[1:] for message in served.messages if message[0] == 1] == [
        (0x40, b"\1\0\0\0"),
        (0x42, b"\2\0\0\0"),
        (0x44, b"\3\0\0\0"),
        (0x3E, b"\4\0\0\0"),
        (0x50, b"\5" + bytes(7)),
        (0x5C, b"\6" + bytes(7)),
    ]


def test_a_write_across_pages_arrives_in_its_pieces(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(served := Toy()), coalesced=[(3, 0, 8192)])
    run(Program().store(bar(device, 3) + 4093, 0x8877_6655_4433_2211, 8).load(bar(device, 0)))
    pieces = [message[1:] for message in served.messages if message[0] == 3]
    assert pieces == [(4093, b"\x11\x22\x33"), (4096, b"\x44\x55\x66\x77\x88")]


def test_each_device_gets_its_own(machine: Machine, serve: Serve, run: Run) -> None:
    devices = [machine.plug(serve(Toy()), coalesced=[PLAIN]) for _ in range(2)]
    program = Program().mark(BEGIN)
    for value in range(1, 31):
        for device in devices:
            program.store(bar(device, 0) + toy.PLAIN, value)
    program.mark(END)
    for device in devices:
        plain_counts(device, program)
    outcome = run(program)
    assert outcome.values == (30, 0, 30, 0)
    assert outcome.exits(BEGIN, END) == (0, 0)
    assert [device.accesses[1] for device in devices] == [30, 30]


def test_a_server_that_takes_little_gets_several_messages(machine: Machine, serve: Serve, run: Run) -> None:
    client = Recorder(serve(Toy()))
    device = machine.plug(client, coalesced=[PLAIN])
    client._calls.most = 8 + 24 * 10
    client.posts.clear()
    assert run(plain_counts(device, counting(bar(device, 0) + toy.PLAIN, 25))).values == (25, 0)
    assert [len(post) for post in client.posts] == [10, 10, 5]


def test_what_a_run_leaves_in_the_ring_arrives_at_its_end(machine: Machine, serve: Serve, tmp_path: Path) -> None:
    device = machine.plug(serve(served := Toy()), coalesced=[PLAIN])
    result = execute(machine, Program().store(bar(device, 0) + toy.PLAIN, 1).spin(), tmp_path, timeout=1.0).run
    assert "still running" in result.failure
    assert device.accesses == (0, 1)
    device.peer.read(0, 0, 4)
    assert served.messages[-1] == (0, toy.PLAIN, b"\1\0\0\0")


def test_vcpus_share_the_ring_and_each_keeps_its_order(tmp_path: Path) -> None:
    times = 1000
    with served(device := Toy()) as sock, Machine(16 * MIB, 2) as machine:
        proxy = machine.plug(Client(sock), coalesced=[(1, 0x40, 0x10)])
        arrived = 0x3_4000
        own = bar(proxy, 1) + 0x40
        # Each stores 1, 2, ... at a place of its own, then adds itself to a word and waits for the other.
        loop = b"\x48\xba" + own.to_bytes(8, "little") + b"\x48\x8d\x14\xfa\x31\xc0"  # rdx = own + 8 * rdi; eax = 0
        loop += b"\xff\xc0\x89\x02\x3d" + times.to_bytes(4, "little") + b"\x75\xf5"  # store ++eax until it is `times`
        loop += b"\x48\xba" + arrived.to_bytes(8, "little") + b"\xf0\xff\x02"  # lock inc dword [rdx]
        wait = b"\x83\x3a\x02\xf3\x90\x72\xf9"  # cmp dword [rdx], 2; pause; jb back
        outcome = execute(machine, Program().raw(loop + wait).load(bar(proxy, 0)), tmp_path)
        assert outcome.run.ok, outcome.run
        proxy.peer.read(0, 0, 4)
        assert proxy.accesses[1] == 2 * times
    for place in (0x40, 0x48):
        values = [
            int.from_bytes(data, "little") for index, offset, data in device.messages if (index, offset) == (1, place)
        ]
        assert values == list(range(1, times + 1))


# Places


def test_a_zone_follows_its_bar(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    old = bar(device, 0)
    program = Program().store(old + toy.PLAIN, 1).config(device.slot, BAR0, ELSEWHERE).mark(BEGIN)
    program.store(ELSEWHERE + toy.PLAIN, 2).store(ELSEWHERE + toy.PLAIN, 3).mark(END).store(old + toy.PLAIN, 9)
    program.load(ELSEWHERE + toy.PLAIN_COUNT, 8).load(ELSEWHERE + toy.PLAIN_ERRORS, 8)
    program.store(ELSEWHERE + toy.PLAIN, 4).config(device.slot, BAR0, old).store(old + toy.PLAIN, 5)
    outcome = run(plain_counts(device, program))
    assert outcome.values == (3, 0, 5, 0)
    assert outcome.exits(BEGIN, END) == (0, 0)


def test_no_write_waits_while_decoding_is_off(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    at = bar(device, 0) + toy.PLAIN
    program = Program().store(at, 1).config(device.slot, COMMAND, 0, 2).mark(BEGIN).store(at, 7).mark(END)
    program.config(device.slot, COMMAND, MEMORY, 2).store(at, 2)
    outcome = run(plain_counts(device, program))
    assert outcome.values == (2, 0)
    assert outcome.exits(BEGIN, END) == (1, 1)


def test_a_reset_delivers_what_waits_and_puts_zones_back_home(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    home = bar(device, 0)
    run(Program().config(device.slot, BAR0, ELSEWHERE).store(ELSEWHERE + toy.PLAIN, 1))
    device.reset()
    assert bar(device, 0) == home
    program = Program().mark(BEGIN).store(home + toy.PLAIN, 1).mark(END)
    outcome = run(plain_counts(device, program))
    assert outcome.values == (1, 0)
    assert outcome.exits(BEGIN, END) == (0, 0)


def test_a_function_level_reset_takes_zones_away(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    at = bar(device, 0)
    program = Program().store(at + toy.PLAIN, 1).config(device.slot, EXPRESS_AT + 8, 0x8000, 2).mark(BEGIN)
    outcome = run(program.store(at + toy.PLAIN, 1).mark(END).load(at))
    assert outcome.values == (ONES,)
    assert outcome.exits(BEGIN, END) == (1, 1)
    assert not machine.platform.coalescing.active


class Watched(Toy):
    """Says when it has been rung, has got many writes, and has lost its client."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.rung, self.loaded, self.left = threading.Event(), threading.Event(), threading.Event()

    @property
    def plain(self) -> list[int]:
        """What has been written to PLAIN."""
        at = PLAIN[:2]
        return [int.from_bytes(data, "little") for index, offset, data in self.messages if (index, offset) == at]

    def arrived(self, counter: int, value: int | None = None, errors: int = 0, times: int = 1) -> None:
        super().arrived(counter, value, errors, times)
        if counter == toy.WILDCARD_COUNT:
            self.rung.set()
        if self.counts[counter] > 1000:
            self.loaded.set()

    def serve(self, sock: socket.socket) -> None:
        self.sock = sock
        super().serve(sock)
        self.left.set()


@contextlib.contextmanager
def running(machine: Machine, program: Program, folder: Path) -> Iterator[None]:
    """A program without end, stopped with the block."""
    thread = threading.Thread(target=execute, args=(machine, program, folder, 60))
    thread.start()
    try:
        yield
    finally:
        machine.stop()
        thread.join()


def writing_and_ringing(device: ProxyDevice) -> Program:
    """A program that leaves a write in the ring, as the device learns from a doorbell that costs no exit."""
    return Program().store(bar(device, 0) + toy.PLAIN, 1).store(bar(device, 1) + toy.WILDCARD, 0).spin()


def test_a_ring_with_no_exit_overtakes_what_waits_and_a_move_delivers_it(
    machine: Machine, serve: Serve, tmp_path: Path
) -> None:
    device = machine.plug(serve(served := Watched("wildcard")), coalesced=[PLAIN])
    with running(machine, writing_and_ringing(device), tmp_path):
        assert served.rung.wait(30)
        assert served.plain == []
        device.config_write(BAR0, ELSEWHERE.to_bytes(4, "little"))
        device.peer.read(0, 0, 4)
        assert served.plain == [1]


def test_what_waits_for_a_device_arrives_before_it_is_unplugged(machine: Machine, serve: Serve, tmp_path: Path) -> None:
    device = machine.plug(serve(served := Watched("wildcard")), coalesced=[PLAIN])
    with running(machine, writing_and_ringing(device), tmp_path):
        assert served.rung.wait(30)
        machine.unplug(device)
        assert served.left.wait(30)
    assert served.plain == [1]


def test_a_device_unplugged_under_load_gets_what_was_written_before(
    machine: Machine, serve: Serve, tmp_path: Path
) -> None:
    device = machine.plug(serve(served := Watched()), coalesced=[PLAIN])
    at = bar(device, 0) + toy.PLAIN
    endless = b"\x48\xba" + at.to_bytes(8, "little") + b"\x31\xc0\xff\xc0\x89\x02\xeb\xfa"  # store ++eax, for ever
    with running(machine, Program().raw(endless), tmp_path):
        assert served.loaded.wait(30)
        machine.unplug(device)
        written = device.accesses[1]
        assert served.left.wait(30)
    assert not machine.platform.coalescing.active
    assert device.accesses[1] == written
    assert served.plain == list(range(1, len(served.plain) + 1))
    assert 1000 < len(served.plain) <= written


# Trouble


def test_a_dead_device_swallows_what_waits_and_the_guest_goes_on(machine: Machine, serve: Serve, run: Run) -> None:
    device = machine.plug(serve(dying := Watched("wildcard")), coalesced=[PLAIN])
    healthy = machine.plug(serve(Toy()), coalesced=[PLAIN])
    machine.on_mark = lambda mark: dying.sock.shutdown(socket.SHUT_RDWR)
    at = bar(device, 0) + toy.PLAIN
    program = Program().store(at, 1).mark(BEGIN)
    for value in range(1, 400):
        program.store(at, value).store(bar(healthy, 0) + toy.PLAIN, value)
    program.config(device.slot, BAR0, ELSEWHERE)
    assert run(plain_counts(healthy, program)).values == (399, 0)
    assert device.peer.lost
    machine.unplug(device)
    assert run(Program().load(bar(healthy, 0))).values == (0xBE11_0001,)


def test_what_waits_arrives_even_if_the_run_fails(
    machine: Machine, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    run_really = Vcpu.run

    def fail(vcpu: Vcpu) -> Exit:
        completing = vcpu.immediate_exit
        found = run_really(vcpu)
        if completing:
            return found
        raise IoctlError(errno.EFAULT, "Bad address", "KVM_RUN")

    monkeypatch.setattr(Vcpu, "run", fail)
    with pytest.raises(IoctlError, match="KVM_RUN"):
        execute(machine, Program().store(bar(device, 0) + toy.PLAIN, 1), tmp_path)
    assert device.accesses == (0, 1)


def test_a_write_that_the_device_refuses_does_not_take_others_with_it(machine: Machine, serve: Serve, run: Run) -> None:
    class Choosy(Toy):
        def region_write(self, index: int, offset: int, data: memoryview) -> None:
            if (index, offset) == (0, 0x14):
                raise VfioUserError("no")
            super().region_write(index, offset, data)

    device = machine.plug(serve(Choosy()), coalesced=[(0, toy.PLAIN, 8)])
    at = bar(device, 0) + toy.PLAIN
    program = Program().store(at, 1).store(at + 4, 1).store(at, 2)
    assert run(plain_counts(device, program)).values == (2, 0)


def test_what_kvm_will_not_coalesce_exits_as_ever(
    machine: Machine, serve: Serve, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(vm: Vm, addr: int, size: int, *, pio: bool = False) -> None:
        raise IoctlError(errno.ENOSPC, "No space left on device", "KVM_REGISTER_COALESCED_MMIO")

    monkeypatch.setattr(Vm, "register_coalesced_mmio", no_space)
    device = machine.plug(serve(Toy()), coalesced=[PLAIN])
    assert "writes to BAR0+0x10, 0x4 bytes are not coalesced" in caplog.text
    assert not machine.platform.coalescing.active
    outcome = run(plain_counts(device, counting(bar(device, 0) + toy.PLAIN, 3)))
    assert outcome.values == (3, 0)
