"""The patched QEMU with -accel kvm and a program that rings bell's doorbells of every kind: who serves which ring."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest

import bare
from bellwired.guest.plan import Plugged
from crafted import Crafted, Entry, crafted, entries
from kvm_ioctls import Kvm
from nested.linux_runs import Served
from nested.qemu_rings import mmio_exits, posting
from patched import PatchedToolbox, patched
from provision import provision
from qtest import monitor

RINGS = 200  # of each kind: what the program does for a letter
PATIENCE = 200.0
KINDS = {
    "wildcard": "w",
    "datamatch": "d",
    "few": "f",
    "latest": "l",
    "value": "v",
    "acknowledged": "a",
    "read": "r",
    "pio": "p",
}
IOREGIONFD, POSTED = 1, 2
SOCKET, EVENTFD, DEAD, INTERNET = range(4)  # indexes of descriptors


def region(offset: int, size: int = 4, fd: int = SOCKET, flags: int = POSTED) -> Entry:
    """An entry of the type ioregionfd."""
    return Entry(offset, size, fd, IOREGIONFD, flags)


HOSTILE = (
    region(0),
    region(0x40),
    region(0x40),
    region(0x20, 0x1000),
    region(0x80, 0),  # any width
    Entry(0x84, fd_index=EVENTFD),  # too near to it
    region(0x100, fd=EVENTFD),
    region(0x140, fd=INTERNET),
    region(0x180, fd=DEAD),
    region(0x1C0, flags=1),  # ports
    region(0x200, flags=1 << 31),
    region(0x240, 0, flags=0),
    region(0x280, fd=99),
    region(0x2C0, (1 << 64) - 1),
    region((1 << 64) - 4, 8),
    region(0x1000),
    Entry(0xFFC, fd_index=EVENTFD),
    region(0xFFC),
)
NOT_REGISTERED = {0x100, 0x140, 0x180, 0x1C0, 0x200, 0x240, 0x280, 0x2C0}


class Ran(NamedTuple):
    """KVM's count of MMIO exits for the rings of each kind, the device's counters, and its tally at the end."""

    exits: dict[str, int]
    counted: dict[str, int]
    tally: dict[str, int]


@pytest.fixture(scope="module")
def tools() -> PatchedToolbox:
    return patched(provision(), lambda line: None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare.build("bell", tmp_path_factory.mktemp("program"))


def having_regions() -> bool:
    """Whether this kernel has ioregionfds."""
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        return vm.has_ioregion()


class Started:
    """A program, while it runs."""

    def __init__(self, folder: Path, process: Popen[bytes]) -> None:
        self._output, self._process = folder / "output", process

    @property
    def said(self) -> str:
        """All that it has written."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def until(self, text: str, times: int = 1) -> None:
        """Wait until it has written this so often."""
        deadline = time.monotonic() + PATIENCE
        while self.said.count(text) < times:
            assert self._process.poll() is None, f"QEMU has ended: {self.said}"
            assert time.monotonic() < deadline, f"the program does not say {text!r}: {self.said}"
            select.select([], [], [], 0.01)

    def code(self) -> int:
        """Wait for its end."""
        return self._process.wait(PATIENCE) >> 1


class Ringing(Started):
    """The program that rings bell: it does what it is told by a letter."""

    def __init__(self, folder: Path, process: Popen[bytes]) -> None:
        super().__init__(folder, process)
        self.until("ready\n")
        self._serial = socket.socket(socket.AF_UNIX)
        self._serial.connect(str(folder / "serial"))
        self._done = 0

    def do(self, letter: str) -> None:
        """Returns when it has done it."""
        self._serial.sendall(letter.encode())
        self._done += 1
        self.until("done\n", self._done)

    def quit(self) -> int:
        """Let it end. Returns its code."""
        self._serial.sendall(b"q")
        self._serial.close()
        return self.code()

    def counted(self) -> dict[str, int]:
        """What the device says of itself."""
        self.do("c")
        words = [line.rsplit(" ", 1) for line in self.said.splitlines() if " 0x" in line]
        return {name: int(value, 16) for name, value in words}


def words(folder: Path) -> list[str]:
    """QEMU's arguments for the serial line and the control socket."""
    serial = f"socket,id=serial,path={folder / 'serial'},server=on,wait=off"
    control = f"unix:{folder / 'control'},server=on,wait=off"
    return ["-cpu", "host", "-chardev", serial, "-serial", "chardev:serial", "-qmp", control]


@pytest.fixture(scope="module")
def ran(tools: PatchedToolbox, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All kinds of rings, in one run."""
    folder = tmp_path_factory.mktemp("ran")
    served = Served("bell", {}, folder)
    exits = {}
    arguments = [*words(folder), "-trace", "vfio_user_io*"]
    with bare.started(tools, folder, program, [Plugged(served.path)], arguments=arguments, accel="kvm") as process:
        guest = Ringing(folder, process)
        with closing(monitor(folder / "control")) as control:
            for kind, letter in KINDS.items():
                before = mmio_exits(control)
                guest.do(letter)
                exits[kind] = mmio_exits(control) - before
        counted = guest.counted()
        assert guest.quit() == 0
    print(exits, counted, (folder / "qemu").read_text())
    return Ran(exits, counted, served.tally())


def test_every_ring_arrives_and_every_value_is_intact(ran: Ran) -> None:
    assert {kind: ran.counted[kind] for kind in KINDS} == dict.fromkeys(KINDS, RINGS)
    assert {name: count for name, count in ran.counted.items() if "errors" in name and count} == {}
    assert (ran.counted["latest value"], ran.counted["few seen"]) == (RINGS, 0xFF)


@pytest.mark.parametrize("kind", ["wildcard", "datamatch", "few"])
def test_rings_by_ioeventfd_are_no_exits(ran: Ran, kind: str) -> None:
    assert ran.exits[kind] == 0


def test_what_rings_by_descriptor_is_no_message(ran: Ran) -> None:
    by_message = ran.tally["rings_message"]
    assert (ran.tally["rings_ioeventfd"], ran.tally["rings_shadow"]) == (4 * RINGS, RINGS)
    assert by_message == (0 if having_regions() else RINGS)  # those of which every value counts


def test_a_doorbell_with_values_arrives_by_ioregionfd_where_the_kernel_has_it(ran: Ran) -> None:
    if having_regions():
        assert ran.tally["rings_ioregionfd"] == 3 * RINGS  # accesses to the region count as well
        assert [ran.exits[kind] for kind in ("value", "acknowledged", "read")] == [0, 0, 0]
    else:
        assert (ran.tally["rings_ioregionfd"], ran.exits["value"]) == (0, RINGS)


def test_the_last_value_is_stored_by_the_kernel_or_by_qemu(ran: Ran) -> None:
    assert ran.exits["latest"] == (0 if posting() else RINGS)


# -- servers that QEMU must not believe


class Hostile(NamedTuple):
    """A server that sends HOSTILE, what it gets through its socket, and its eventfd."""

    device: Crafted
    commands: socket.socket
    bell: int

    def values(self) -> set[int]:
        """Of all writes that came through the socket."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while command := self.commands.recv(64, socket.MSG_DONTWAIT):
                found.add(struct.unpack_from("<I", command, 24)[0])
        return found

    def messages(self) -> set[int]:
        """The offsets of all writes that came as messages."""
        return {offset for _, offset, _ in self.device.writes}


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Callable[[str], Hostile]]:
    """Makes such a server."""
    with ExitStack() as stack:

        def make(name: str) -> Hostile:
            pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
            (ours, theirs), (dead, gone) = (map(stack.enter_context, pair) for pair in pairs)
            gone.close()
            internet, bell = stack.enter_context(socket.socket()), os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, bell)
            fds = [theirs.fileno(), bell, dead.fileno(), internet.fileno()]
            (tmp_path / name).mkdir()
            return Hostile(stack.enter_context(crafted(tmp_path / name, entries(*HOSTILE, fds=fds))), ours, bell)

        yield make


def test_hostile_servers_do_not_end_qemu(
    tools: PatchedToolbox, hostile: Callable[[str], Hostile], tmp_path: Path
) -> None:
    """KVM's own listener ends QEMU if a registration fails. The BARs lie side by side, as a guest can place them."""
    image, servers = bare.build("hostile", tmp_path), [hostile("one"), hostile("other")]
    devices = [each.device for each in servers]
    with bare.started(tools, tmp_path, image, devices, arguments=["-cpu", "host"], accel="kvm") as process:
        assert Started(tmp_path, process).code() == 0, (tmp_path / "qemu").read_text()
    for each in servers:
        messages, values = each.messages(), each.values()
        assert messages >= NOT_REGISTERED
        assert os.eventfd_read(each.bell) == 1  # at the BAR's end, beside the other's ioregionfd
        assert values - {0} == ({0x40, 0x80} if having_regions() else set())
        assert not values & messages
        assert {0, 0x40, 0x80} <= values | messages
    assert any(0 in each.messages() for each in servers)  # it has made way for the other's eventfd


def test_a_reset_ends_an_access_that_no_server_answers(tools: PatchedToolbox, tmp_path: Path) -> None:
    """The vCPU waits in the kernel. The end of that access must not change what the reset has set."""
    if not having_regions():
        pytest.skip("this kernel has no ioregionfds")
    image = bare.build("awaiting", tmp_path)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, crafted(tmp_path, entries(region(0x100, flags=0), fds=[theirs.fileno()])) as device:
        ours.settimeout(PATIENCE)
        arguments = words(tmp_path)
        with bare.started(tools, tmp_path, image, [device], arguments=arguments, accel="kvm") as process:
            program = Started(tmp_path, process)
            program.until("ready\n")
            assert ours.recv(64)
            with closing(monitor(tmp_path / "control")) as control:
                control.ask("system_reset")
            program.until("ready\n", 2)
            assert ours.recv(64)
            ours.sendall(struct.pack("<Q24x", 0x1234_5678))
            assert program.code() == 0
            assert program.said.endswith("ready\nread 0x12345678\n")
        assert not device.writes
