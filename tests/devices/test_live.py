"""A live device: a test's thread looks at a device that another thread runs."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntFlag
from typing import Any, NamedTuple

import pytest

from bellwire import Bar, GuestError, MsiX, PciDevice
from bellwire.declare.block import Block, doorbell, reg
from bellwire.testing import Live, Serving, serve
from vfio_user import Client

GO = 1


class Status(IntFlag):
    DONE = 1


class Queue(Block):
    base = reg(0x00, size=8)
    bell = doorbell(0x08)


class Pair(NamedTuple):
    first: int
    second: int


class Watched(PciDevice, vendor=0x1234, device=0x11FE, class_code=0x088000):
    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, Status, access="w1c")
    counter = mmio.reg(0x04, access="ro")
    number = mmio.reg(0x08)
    go = mmio.doorbell(0x10, value=True)
    queues = mmio.block(0x100, Queue, count=2, stride=0x10)
    area_bar = Bar(2, size=4096)
    area = area_bar.area(0, 4096)

    def setup(self) -> None:
        self.reads = 0
        self.threads: list[str] = []
        self.kept: Any = None
        self.gate = threading.Event()
        self.begun = threading.Event()

    @counter.read
    def read_counter(self) -> int:
        self.reads += 1
        self.counter = self.reads
        return self.reads

    @number.write
    def number_written(self, value: int) -> None:
        self.threads.append(threading.current_thread().name)
        if value == 0xBAD:
            raise GuestError("a bad number")

    @go.ring
    def work(self, value: int) -> None:
        self.begun.set()
        self.gate.wait(10)
        self.status |= Status.DONE

    @queues.bell.ring
    def queue_rung(self, index: int) -> None:
        self.threads.append(f"queue {index}")

    def where(self) -> str:
        return threading.current_thread().name


@pytest.fixture
def served() -> Iterator[Serving[Watched]]:
    with serve(Watched) as served:
        yield served


def test_a_registers_value_has_its_type_and_no_read_hook_runs(served: Serving[Watched]) -> None:
    served.live.status = Status.DONE
    assert served.live.status is Status.DONE
    assert served.live.counter == 0
    assert served.live.reads == 0


def test_a_stored_value_runs_no_write_hook(served: Serving[Watched]) -> None:
    served.live.number = 5
    assert served.live.number == 5
    assert served.live.threads == []


def test_hooks_run_for_an_access_that_asks_for_them(served: Serving[Watched]) -> None:
    assert served.live.read_bar(0, Watched.counter.offset, 4) == b"\1\0\0\0"
    served.live.write_bar(0, Watched.number.offset, b"\7\0\0\0")
    assert served.live.threads == ["bellwire watched"]


def test_a_look_waits_until_the_hook_has_ended(served: Serving[Watched]) -> None:
    with Client.connect(served.path) as client:
        client.write(0, Watched.go.offset, b"\1\0\0\0", posted=True)
        assert served.device.begun.wait(10)
        with ThreadPoolExecutor(1) as pool:
            look = pool.submit(lambda: served.live.status)
            assert not look.done()
            served.device.gate.set()
            assert look.result(10) == Status.DONE


def test_a_look_sees_all_that_was_written_before_it(served: Serving[Watched]) -> None:
    with Client.connect(served.path) as client:
        for number in range(1, 500):
            client.write(0, Watched.number.offset, number.to_bytes(4, "little"), posted=True)
            assert served.live.number == number


def test_a_method_runs_on_the_devices_thread(served: Serving[Watched]) -> None:
    assert served.live.where() == "bellwire watched"
    assert threading.current_thread().name != "bellwire watched"


def test_what_a_method_raises_comes_out_of_its_call(served: Serving[Watched]) -> None:
    with pytest.raises(GuestError, match="a bad number"):
        served.live.write_bar(0, Watched.number.offset, (0xBAD).to_bytes(4, "little"))
    assert served.live.number == 0xBAD


def test_a_misspelt_attribute_is_an_attribute_error(served: Serving[Watched]) -> None:
    with pytest.raises(AttributeError, match="statsu"):
        served.live.statsu  # type: ignore[attr-defined]  # noqa: B018
    assert "status" in dir(served.live)


def test_rows_of_a_block_doorbells_and_vectors_are_live_too(served: Serving[Watched]) -> None:
    served.live.queues[1].base = 0x1000
    assert [row.base for row in served.live.queues] == [0, 0x1000]
    assert len(served.live.irq) == 2
    assert bool(served.live.irq)
    bell = served.live.queues[1].bell
    with Client.connect(served.path) as client:
        client.write(0, Watched.queues[1].bell.offset, bytes(4), posted=True)
        assert bell.rung == 1
    assert served.live.threads == ["queue 1"]


def test_memory_is_copied_so_that_no_view_is_left_at_the_end(served: Serving[Watched]) -> None:
    served.live.write_bar(2, 0, b"abc")
    copied = served.live.area
    assert isinstance(copied, bytes)
    assert copied[:3] == b"abc"


@pytest.mark.parametrize(
    "value", [[1, "a"], {"a": 1}, (1, 2), Pair(1, 2), {3}, deque([1], 4), None, 1.5, b"x"], ids=repr
)
def test_values_are_copied(served: Serving[Watched], value: object) -> None:
    served.live.kept = value
    assert served.live.kept == value
    assert type(served.live.kept) is type(value)


def test_a_live_part_is_itself_when_it_is_given_back(served: Serving[Watched]) -> None:
    served.live.kept = served.live.irq
    assert served.device.kept is served.device.irq
    assert served.live.kept == served.live.irq
    assert {served.live.kept, served.live.irq} == {served.live.irq}
    assert isinstance(served.live.irq, Live)


def test_a_reset_brings_the_values_after_power_on_back(served: Serving[Watched]) -> None:
    served.live.number = 5
    served.reset()
    assert served.live.number == 0
    assert served.statistics()["resets"] == 2


def test_a_hook_that_does_not_end_is_named(served: Serving[Watched]) -> None:
    with Client.connect(served.path) as client:
        client.write(0, Watched.go.offset, b"\1\0\0\0", posted=True)
        assert served.device.begun.wait(10)
        try:
            with pytest.raises(TimeoutError, match=r"watched has been busy for 0.05 s, in .*wait"):
                served.call(lambda: None, patience=0.05)
        finally:
            served.device.gate.set()


def test_a_hook_that_does_not_end_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["bellwire.testing.serve"], "PATIENCE", 0.05)
    device = Watched()

    def use() -> None:
        with serve(device) as served, Client.connect(served.path) as client:
            client.write(0, Watched.go.offset, b"\1\0\0\0", posted=True)
            assert device.begun.wait(10)

    try:
        with pytest.raises(TimeoutError, match=r"watched does not end, in .*wait"):
            use()
    finally:
        device.gate.set()


def test_a_device_that_has_ended_says_so() -> None:
    with serve(Watched) as served:
        pass
    with pytest.raises(RuntimeError, match="watched is no longer served"):
        served.live.status  # noqa: B018


def test_the_devices_own_thread_does_not_wait_for_itself(served: Serving[Watched]) -> None:
    assert served.call(lambda: served.live.number) == 0
