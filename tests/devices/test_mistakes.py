"""What an author gets wrong is said in one line, with the device, the hook, and the place in the file."""

from __future__ import annotations

import linecache
import os
import socket
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from bellwire import Bar, DeclarationError, GuestError, PciDevice
from bellwire.serve.blame import DeviceFailed
from bellwire.serve.worker import Worker
from bellwire.testing import Guest
from bellwired.errors import CommandError
from bellwired.find import find_device
from devices.serving import read, served, sub_regions, wait_until, write
from vfio_user import RemoteError

HEAD = """\
from enum import IntEnum
from bellwire import Bar, IntX, MsiX, Option, PciDevice, Saved

class Dut(PciDevice, vendor=0x1234, device=1, class_code=0x088000):
    irq = MsiX(1)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00)
    bell = mmio.doorbell(0x10)
    @bell.ring
    def rung(self): pass
"""
BODY_AT = HEAD.count("\n") + 1
"""The line of the first line below."""


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        ("second = mmio.reg(0x02, size=4)", 0, "Dut.second: offset 0x2 is misaligned"),
        ("\n\n    second = mmio.reg(0x00)", 2, "Dut.second: 0x0 to 0x3 overlaps status"),
        ("other = mmio.doorbell(0x20)", 0, "Dut.other: no method is tied to it: write @other.ring"),
        ("@bell.write\n    def go(self): pass", 0, "type Doorbell has no .write: tie the method by .ring"),
        ("@status.ring\n    def go(self): pass", 0, "type Register has no .ring: tie the method by .read and .write"),
        ("@irq.ring\n    def go(self): pass", 0, "type MsiX has no .ring: no hook can be tied to it"),
        ("@mmio.write\n    def go(self): pass", 0, "type Bar has no .write: no hook can be tied to it"),
        ("def __init__(self, **options):\n        self.x = 1", 0, "Dut.__init__ does not call super().__init__"),
        (
            "@status.write\n    def go(self, value):\n        self.statsu = 5",
            2,
            "Dut.go assigns self.statsu, which the device does not have: did you mean status?",
        ),
        (
            "def setup(self):\n        self.count = 0\n    @status.write\n    def go(self, v):\n        self.coutn = v",
            4,
            "did you mean count?",
        ),
        ("@status.write\n    def go(self, value):\n        a = self.zzz = value", 2, "Dut.go assigns self.zzz"),
        ("@property\n    def p(self):\n        self.qqq = 1", 2, "Dut.p assigns self.qqq"),
        ("@status.write\n    def go(self): pass", 0, "it is called as go(self, value)"),
        ("@status.write\n    async def go(self, value): pass", 0, "write a plain method (def, not async def)"),
        ("@status.write\n    def a(self, v): ...\n    @status.write\n    def b(self, v): ...", 2, "a and b are both"),
    ],
)
def test_a_mistake_in_a_class_is_one_line_that_points_at_it(tmp_path: Path, body: str, line: int, words: str) -> None:
    file = tmp_path / "dut.py"
    file.write_text(f"{HEAD}    {body}\n")
    with pytest.raises(CommandError) as raised:
        find_device(str(file))
    text = str(raised.value)
    assert text.startswith(f"{file}:{BODY_AT + line}: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "body",
    [
        "def setup(self):\n        self.count = 0\n    @status.write\n    def go(self, v):\n        self.count = v",
        "def setup(self):\n        self.open()\n    def open(self):\n        self.far = self.near = 1",
        "def reset(self):\n        self.count = 0",
        "count: int\n    @status.write\n    def go(self, v):\n        self.count = v",
        "count = 0\n    @status.write\n    def go(self, v):\n        self.count = v",
        "def __init__(self, **options):\n        super().__init__(**options)\n        self.count = 0",
        "@property\n    def p(self):\n        return 1\n    @p.setter\n    def p(self, v):\n        self.status = v\n"
        "    @status.write\n    def go(self, v):\n        self.p = v",
        "@staticmethod\n    def fill(row):\n        row.thing = 1",
        "@status.write\n    def go(self, v):\n        other = [self]\n        self.status, other.thing = 1, 2",
    ],
)
def test_attributes_that_are_made_where_they_should_be_are_taken(tmp_path: Path, body: str) -> None:
    file = tmp_path / "dut.py"
    file.write_text(f"{HEAD}    {body}\n")
    find_device(str(file))


class Speed(IntEnum):
    SLOW = 1


class Careless(PciDevice, vendor=0x1234, device=0x3157, class_code=0x088000):
    mmio = Bar(0, size=4096)
    nothing = mmio.reg(0x00)
    division = mmio.reg(0x04)
    typo = mmio.reg(0x08)
    far = mmio.reg(0x0C)
    speed = mmio.reg(0x10, Speed, reset=1)
    bell = mmio.doorbell(0x20)
    valued = mmio.doorbell(0x24, value=True)
    stretch = mmio.ioregion(0x40, 16)
    scratch = mmio.reg(0x80)
    how = ""

    @nothing.read
    def read_nothing(self) -> int:
        return None  # type: ignore[return-value]

    @division.write
    def divide(self, value: int) -> None:
        self.scratch = 1 // value

    @typo.write
    def mistype(self, value: int) -> None:
        self.scratch = value + self.scrtch  # type: ignore[attr-defined]

    @far.write
    def reach(self, address: int) -> None:
        self.dma.read(address, 4)

    @bell.ring
    def rung(self) -> None:
        self.dma.write(0xF000_0000, b"abc")

    @valued.ring
    def rung_with(self, value: int) -> None:
        raise GuestError(f"{value} is too much")

    @stretch.read
    def read_stretch(self, offset: int, size: int) -> int:
        return None  # type: ignore[return-value]

    def setup(self) -> None:
        if self.how == "setup":
            raise KeyError("tap0")

    def reset(self) -> None:
        if self.how == "reset":
            raise KeyError("tap1")


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(linecache.getlines(__file__), 1) if text in line)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (
            Careless.division.offset,
            0,
            f"Careless.divide failed at {__file__}:{line_of('= 1 // value')}: "
            "ZeroDivisionError: integer division or modulo by zero (in write of 0x0 to Careless.division)",
        ),
        (
            Careless.typo.offset,
            1,
            f"Careless.mistype failed at {__file__}:{line_of('+ self.scrtch')}: AttributeError: "
            "'Careless' object has no attribute 'scrtch'; did you mean scratch? (in write of 0x1 to Careless.typo)",
        ),
        (
            Careless.far.offset,
            0x100,
            "guest error in write of 0x100 to Careless.far: DMA read of 4 bytes at 0x100: "
            "the client has mapped nothing there",
        ),
        (Careless.speed.offset, 7, "guest error: write of 0x7 to Careless.speed: Speed has no such value"),
        (Careless.valued.offset, 9, "guest error in ring of Careless.valued with 0x9: 9 is too much"),
    ],
)
def test_a_failing_hook_is_one_line(caplog: pytest.LogCaptureFixture, offset: int, value: int, words: str) -> None:
    with served(Careless()) as client:
        write(client, offset, value, posted=True)
        wait_until(lambda: words in caplog.messages)


@pytest.mark.parametrize(
    ("offset", "hook"), [(Careless.nothing.offset, "read_nothing"), (Careless.stretch.offset, "read_stretch")]
)
def test_a_read_hook_that_returns_nothing_is_told_so(caplog: pytest.LogCaptureFixture, offset: int, hook: str) -> None:
    with served(Careless()) as client, pytest.raises(RemoteError):
        read(client, offset)
    place = f"{__file__}:{line_of(f'def {hook}(') - 1}"
    assert (
        f"Careless.{hook} ({place}) returned None: a read hook returns the number that the guest reads" in caplog.text
    )


def test_a_dma_that_cannot_be_says_what_once() -> None:
    with Guest(Careless) as guest, pytest.raises(GuestError) as raised:
        guest.ring(Careless.bell)
    assert str(raised.value) == "DMA write of 3 bytes at 0xf0000000: the client has mapped nothing there"
    with Guest(Careless, memory=0x1000) as guest, pytest.raises(GuestError) as raised:
        guest.write(Careless.far, 0xFFE)
    assert str(raised.value) == "DMA read of 4 bytes at 0xffe: from 0x1000 on, the client has mapped nothing there"


def test_the_log_names_the_doorbell_of_a_guests_mistake(caplog: pytest.LogCaptureFixture) -> None:
    with served(Careless()) as client, sub_regions(client) as subs:
        client.write(7, 4, b"\x04\0")  # bus mastering
        os.eventfd_write(subs[Careless.bell.offset].fd, 1)
        read(client, Careless.scratch.offset)
    assert "guest error in ring of Careless.bell: DMA write of 3 bytes at 0xf0000000: " in caplog.text


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        yield listener


@pytest.mark.parametrize(("how", "text"), [("setup", "tap0"), ("reset", "tap1")])
def test_what_goes_wrong_at_the_start_is_one_line(listener: socket.socket, how: str, text: str) -> None:
    device: Any = Careless()
    device.how = how
    with pytest.raises(DeviceFailed) as raised:
        Worker(device, listener).run()
    place = f"{__file__}:{line_of('KeyError(' + repr(text).replace(chr(39), chr(34)))}"
    assert str(raised.value) == f"Careless.{how} failed at {place}: KeyError: '{text}'"


def test_no_register_can_be_assigned_a_name_that_it_has_not() -> None:
    with pytest.raises(DeclarationError, match=r"assigns self\.statsu"):

        class _Wrong(Careless, device=0x3158):
            @Careless.scratch.write
            def go(self, value: int) -> None:
                self.statsu = value
