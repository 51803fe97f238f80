"""Parts between a device and its host by themselves: loop, system calls, the test guest, and refusals."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from enum import IntEnum, IntFlag
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bellwire import Bar, DeclarationError, MsiX, PciDevice, linux
from bellwire.declare.block import reg
from bellwire.declare.vendor import VendorCapability
from bellwire.serve.host import ClientHost
from bellwire.serve.loop import Loop
from bellwire.stream import Stream
from bellwire.stream.backends import Pty
from bellwire.testing import Guest
from vfio_user import DmaFault, Estate, IrqIndex, Kept, Ledger

IDS = {"vendor": 0x1234, "device": 0x5678, "class_code": 0xFF0000}


class Flags(IntFlag):
    ONE = 1
    FOUR = 4


class Kind(IntEnum):
    LOW = 1


class Fields(IntFlag):
    ENABLE = 0x1
    MODE = 0x6
    BOTH = 0x7
    DONE = 0x8
    APART = 0x50
    ON = 0x1
    LEVEL = 0xFF00
    NONE = 0


class Dut(PciDevice, vendor=0x1234, device=0x5678, class_code=0xFF0000):
    mmio = Bar(0, size=4096)
    plain = mmio.reg(0)
    flags = mmio.reg(4, Flags)
    kind = mmio.reg(8, Kind, reset=1)
    fields = mmio.reg(12, Fields)
    row = mmio.ioregion(0x100, 16, bell=4, posted=True)
    cap = VendorCapability(b"abcd")
    queues = mmio.block(0x200, count=3, stride=8, word=reg(0))
    gone = False

    @row.ring
    def rung(self, offset: int) -> None:
        if self.gone:
            raise LookupError(f"no {offset}")


# -- declarations


@pytest.mark.parametrize(
    ("register", "value", "meaning"),
    [
        (Dut.plain, 1, ""),
        (Dut.flags, 5, "ONE|FOUR"),
        (Dut.flags, 0, "0"),
        (Dut.flags, 0x15, "ONE|FOUR|0x10"),
        (Dut.fields, 0x4, "MODE=0x2"),
        (Dut.fields, 0xFF0D, "ENABLE|MODE=0x2|DONE|LEVEL=0xff"),
        (Dut.fields, 0x8000_0151, "ENABLE|LEVEL=0x1|0x80000050"),
        (Dut.kind, 1, "LOW"),
        (Dut.kind, 2, "?"),
    ],
)
def test_a_value_has_a_meaning(register: Any, value: int, meaning: str) -> None:
    assert register.meaning(value) == meaning


def test_a_block_is_gone_through_row_by_row() -> None:
    assert len(Dut.queues) == 3
    assert [row.word.offset for row in Dut.queues] == [0x200, 0x208, 0x210]
    assert Dut.queues[2].word.name == "queues[2].word"
    for what in (Dut.queues, Dut.queues[0]):
        with pytest.raises(AttributeError, match="a row of the block has no wrod: it has word"):
            _ = what.wrod


def refused(words: str, body: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=words):
        type("Bad", (PciDevice,), body, **IDS)


def test_what_lies_in_a_bar_of_another_device_is_refused() -> None:
    other = Bar(0, size=4096)
    refused("its BAR is not declared in Bad", {"word": other.reg(0)})
    refused("its BAR is not declared in Bad", {"irq": MsiX(1, bar=other)})


def test_there_is_one_declaration_of_each_kind_of_interrupt() -> None:
    refused("Bad declares MsiX twice: one and two", {"one": MsiX(1), "two": MsiX(1)})


def test_a_name_that_the_sdk_uses_is_refused_by_its_declaration() -> None:
    refused("PciDevice has this name for its own use", {"reset": Bar(0, size=16)})


@pytest.mark.parametrize("access", ["wo", "constant", "reserved"])
def test_a_read_hook_that_no_read_would_run_is_refused(access: str) -> None:
    bar = Bar(0, size=16)
    word = bar.reg(0, access=access)

    def look(self: PciDevice) -> int:
        return 0

    refused("no guest's read would run it", {"bar": bar, "word": word, "look": word.read(look)})


# -- the test guest


def test_the_guest_says_what_cannot_be_reached() -> None:
    with Guest(Dut) as guest:
        assert guest.config_read(guest.capability(Dut.cap), 4) == int.from_bytes(b"abcd", "little")
        with pytest.raises(TypeError, match="needs a size"):
            guest.read(0, 0)  # type: ignore[call-overload]
        for offset, size in ((4096, 1), (4093, 4), (-1, 1)):
            with pytest.raises(IndexError, match="of region 0, which has 0x1000"):
                guest.read(0, offset, size)
        assert guest.read(0, 4092, 4) == 0
        assert guest.undelivered(IrqIndex.MSIX, 0) is False
        for call in (lambda: guest.dma_read(0, 1), lambda: guest.dma_write(0, memoryview(b""))):
            with pytest.raises(AssertionError):
                call()


def test_an_error_of_a_ring_names_the_doorbell() -> None:
    with Guest(Dut) as guest:
        core = guest.device.core
        core.ring_in_row((Dut.row, 8), 1)
        guest.device.gone = True
        with pytest.raises(LookupError) as raised:
            core.ring_in_row((Dut.row, 8), 1)
        assert raised.value.__notes__ == ["ring of Dut.row at 0x8"]


# -- a worker's host


def test_without_a_client_there_is_no_memory() -> None:
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), Ledger())  # type: ignore[arg-type]
    for call in (host.segments, host.whole):
        with pytest.raises(DmaFault, match="no client is connected"):
            call(0x1000, 4, False)
    assert (host.by_message, host.shared_map(0, False)) == (False, None)
    assert host.signal(IrqIndex.MSIX, 0) is False
    assert host.undelivered(IrqIndex.MSIX, 0) is True
    host.level(True)


class Remembering(Ledger):
    """Says what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def keep(self, *entries: Kept) -> None:
        self.told += entries

    def drop(self, *keys: str) -> None:
        self.told += keys


def test_a_file_is_kept_for_a_successor_while_there_is_a_client() -> None:
    ledger = Remembering()
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), ledger)  # type: ignore[arg-type]
    host.keep_file("record", 3, {"size": 4096})
    host.drop_file("record")
    assert ledger.told == []
    host.session = SimpleNamespace()  # type: ignore[assignment]
    host.keep_file("record", 3, {"size": 4096})
    host.drop_file("record")
    assert ledger.told == [Kept("file record", {"size": 4096}, (3,)), "file record"]


def test_a_kept_file_is_there_once() -> None:
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), Ledger())  # type: ignore[arg-type]
    assert host.kept_file("record") is None
    host.estate = Estate({"file record": Kept("file record", {"size": 4096}, (3,))})
    assert host.kept_file("record") == (3, {"size": 4096})
    assert host.kept_file("record") is None


def test_with_a_client_it_is_asked() -> None:
    host = ClientHost(SimpleNamespace(), SimpleNamespace(), Ledger())  # type: ignore[arg-type]
    levels: list[bool] = []
    dma = SimpleNamespace(whole=lambda *what: what, segments=lambda *what: what, by_message=True)
    irqs = SimpleNamespace(trigger=lambda *what: True, pending=lambda *what: False, set_level=levels.append)
    host.session = SimpleNamespace(dma=dma, irqs=irqs)  # type: ignore[assignment]
    assert [*map(str, (host.whole(1, 2, True), host.segments(1, 2, True)))] == ["(1, 2, True)"] * 2
    assert (host.by_message, host.signal(IrqIndex.MSI, 0), host.undelivered(IrqIndex.MSI, 0)) == (True, True, False)
    host.level(True)
    assert levels == [True]


def test_a_timer_that_is_removed_neither_runs_nor_stays() -> None:
    loop = Loop()
    ran: list[str] = []
    timers = [loop.after(0, lambda name=name: ran.append(name)) for name in "abc"]  # type: ignore[misc]
    loop.remove(timers[1])
    assert len(loop._timers) == 2
    loop.remove(timers[1])
    loop.run_timers()
    assert ran == ["a", "c"]
    loop.remove(timers[0])
    loop.close()


# -- system calls


def test_a_system_call_that_fails_is_an_error_with_its_number(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="fallocate") as refused_call:
        linux.fallocate(-1, 0, 0, 1)
    assert refused_call.value.errno == errno.EBADF
    with pytest.raises(OSError, match=r"mount nothing") as refused_call:
        linux.mount("nothing", os.fspath(tmp_path / "gone"))
    assert refused_call.value.errno in (errno.ENODEV, errno.EPERM, errno.ENOENT)
    with pytest.raises(OSError, match=r"unshare") as refused_call:
        linux.unshare(1)
    assert refused_call.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="io_setup"):
        linux.AioContext(-1)


def test_a_system_call_that_was_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [errno.EINTR, errno.EINTR, errno.ENOSPC]
    made: list[tuple[int, ...]] = []

    def call(*what: int) -> int:
        made.append(what)
        ctypes.set_errno(numbers[len(made) - 1])
        return -1

    monkeypatch.setattr(linux, "_libc", SimpleNamespace(fallocate=call))
    with pytest.raises(OSError, match="fallocate") as refused_call:
        linux.fallocate(5, 1, 2, 3)
    assert (refused_call.value.errno, made) == (errno.ENOSPC, [(5, 1, 2, 3)] * 3)


# -- streams


def test_a_stream_whose_reader_has_gone_still_gives_what_it_sent() -> None:
    ours, theirs = socket.socketpair()
    stream = Stream("x")
    stream.take(ours.detach())
    theirs.sendall(b"last")
    stream._end_output()
    assert (stream.connected, bytes(stream.receive(9))) == (True, b"last")
    stream.close()
    theirs.close()


def test_the_end_of_the_last_way_is_the_end_of_the_stream() -> None:
    stream = Stream("x")
    stream.take(*os.pipe())
    stream._end_input()
    before = stream.connected
    stream._end_output()
    assert (before, stream.connected) == (True, False)
    stream.close()


def test_a_link_of_a_pty_that_has_gone_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/nowhere")
    pty = Pty(link)
    assert os.readlink(link) == pty.path
    pty.close()
    assert not link.is_symlink()
