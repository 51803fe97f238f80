"""Newer code goes on in the place of older code, with its state and its client. Code that cannot never takes over."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bellwire import Bar, BellwireError, MsiX, PciDevice, Saved, StateError
from bellwire.serve.worker import Worker
from devices.serving import COMMAND, MEMORY_AND_MASTER, PATIENCE, eventfd, heard, read, running, sub_regions, write
from devices.versions import version
from vfio_user import PROPOSAL, Client, IrqIndex, RegionIndex


def code(step: int = 1, *, more: dict[str, Any] | None = None, **changes: Any) -> type[PciDevice]:
    """A version of a device that counts rings by ``step``, writes the count to guest memory, and interrupts."""
    mmio = Bar(0, size=4096)
    screen = Bar(2, size=1 << 14)
    go = mmio.doorbell(0x30)

    def rang(self: Any) -> None:
        self.count += step
        self.dma.write(0x100, self.count.to_bytes(4, "little"))
        self.irq[1].trigger()

    body: dict[str, Any] = {
        "mmio": mmio,
        "count": mmio.reg(0x10, access="ro"),
        "note": mmio.reg(0x14),
        "go": go,
        "screen": screen,
        "frame": screen.area(4096, 8192),
        "irq": MsiX(2),
        "rang": go.ring(rang),
        "history": Saved(0),
    }
    made: type[PciDevice] = version(**{**body, **changes, **(more or {})})
    return made


@contextmanager
def memory() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 16)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def served(kind: type[PciDevice]) -> Iterator[tuple[Worker, Client]]:
    ours, theirs = socket.socketpair()
    worker = Worker(kind(), connection=theirs, replaceable=True)
    with running(worker), Client(ours, proposal=PROPOSAL) as client, memory() as fd:
        client.dma_map(0, 1 << 16, fd)
        client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
        yield worker, client


def on_loop(worker: Worker, action: Callable[[], object]) -> Exception | None:
    """Run ``action`` on the worker's thread, between two turns. What it raises."""
    done, raised = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 the test looks at it
            raised.append(error)
        finally:
            done.set()

    worker.loop.hand_over(run)
    assert done.wait(PATIENCE)
    return raised[0] if raised else None


def test_a_client_goes_on_with_newer_code(open_fds: set[int]) -> None:
    with served(code(1)) as (worker, client), sub_regions(client) as subs, eventfd() as irq:
        client.trigger_eventfds(IrqIndex.MSIX, 1, [irq])
        write(client, 0x14, 0x77)
        os.eventfd_write(subs[0x30].fd, 1)
        assert heard(irq)
        assert read(client, 0x10) == 1
        assert on_loop(worker, lambda: worker.replace(code(10)())) is None
        assert (read(client, 0x10), read(client, 0x14)) == (1, 0x77)
        os.eventfd_write(subs[0x30].fd, 1)  # the doorbell of before
        assert heard(irq)  # the interrupt of before
        assert read(client, 0x10) == 11
    gc.collect()
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds | {max(open_fds) + 1}


def test_a_device_at_debug_level_is_replaced_and_tells_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "bellwire.device"), served(code(1)) as (worker, client):
        assert on_loop(worker, lambda: worker.replace(code(10)())) is None
        assert on_loop(worker, lambda: worker.replace(code(10, irq=MsiX(3))())) is not None
        caplog.clear()
        write(client, 0x14, 0x77)
        assert read(client, 0x14) == 0x77
        assert sum(each.startswith("read    note = 0x00000077") for each in caplog.messages) == 1
        assert [label for label, _ in worker.served.filters] == ["trace"]


def test_it_can_be_replaced_again_and_again() -> None:
    with served(code(1)) as (worker, client), sub_regions(client) as subs:
        for step in (10, 100, 1000):
            assert on_loop(worker, lambda step=step: worker.replace(code(step)())) is None  # type: ignore[misc]
            os.eventfd_write(subs[0x30].fd, 1)
        assert read(client, 0x10) == 1110


class Broken(Exception):
    pass


def fails(self: Any) -> None:
    raise Broken("as the author has it")


@pytest.mark.parametrize("method", ["setup", "reset", "restored", "check_state"])
def test_code_that_raises_never_takes_over(method: str) -> None:
    with served(code(1)) as (worker, client), sub_regions(client) as subs:
        os.eventfd_write(subs[0x30].fd, 1)
        error = on_loop(worker, lambda: worker.replace(code(10, more={method: fails})()))
        assert error is not None
        os.eventfd_write(subs[0x30].fd, 1)
        assert read(client, 0x10) == 2, "the old code does not go on"
        assert on_loop(worker, lambda: worker.replace(code(10)())) is None
        os.eventfd_write(subs[0x30].fd, 1)
        assert read(client, 0x10) == 12


def test_code_that_looks_different_to_the_guest_is_refused() -> None:
    with served(code(1)) as (worker, client):
        error = on_loop(worker, lambda: worker.replace(code(irq=MsiX(3))()))
        assert isinstance(error, StateError)
        assert "MSI-X was 2 vectors, table at 0x0 of BAR 5 and is 3 vectors" in str(error)
        assert read(client, 0x10) == 0


def test_without_a_client_the_state_goes_along(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        worker = Worker(code(1)(), listener, replaceable=True)
        with running(worker):
            assert on_loop(worker, lambda: setattr(worker.device, "history", 5)) is None
            assert on_loop(worker, lambda: worker.replace(code(10, irq=MsiX(3))())) is None
            ours = socket.socket(socket.AF_UNIX)
            ours.connect(str(tmp_path / "s"))
            with Client(ours, proposal=PROPOSAL) as client:
                client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
                with sub_regions(client) as subs:
                    os.eventfd_write(subs[0x30].fd, 1)
                    assert read(client, 0x10) == 10
            assert worker.device.history == 5  # type: ignore[attr-defined]


def test_a_worker_that_remembers_nothing_cannot_be_replaced() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(code(1)(), connection=theirs)
    with running(worker), Client(ours, proposal=PROPOSAL):
        assert isinstance(on_loop(worker, lambda: worker.replace(code(2)())), StateError)


def test_the_guests_map_of_an_area_stays() -> None:
    with served(code(1)) as (worker, client):
        assert on_loop(worker, lambda: setattr(worker.device, "note", 1)) is None
        fd = worker.device.core.state.area_fds[2]
        with mmap.mmap(fd, 1 << 14) as guest:
            guest[4096] = 7
            assert on_loop(worker, lambda: worker.replace(code(2)())) is None
            guest[4097] = 8
            assert bytes(worker.device.frame[:2]) == b"\7\10"  # type: ignore[attr-defined]
        assert read(client, 0x14) == 1


def alone(path: Any) -> dict[str, Any]:
    """Methods of a device that nothing else may have ``path`` open beside."""

    def setup(self: Any) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.file)
            raise BellwireError("another device uses it") from None

    return {"setup": setup, "close": lambda self: os.close(self.file)}


def test_a_device_that_must_be_alone_with_a_file_is_replaced(tmp_path: Any, open_fds: set[int]) -> None:
    only = alone(tmp_path / "image")
    with served(code(1, more=only)) as (worker, client), sub_regions(client) as subs:
        os.eventfd_write(subs[0x30].fd, 1)
        for step in (10, 100):
            assert on_loop(worker, lambda step=step: worker.replace(code(step, more=only)())) is None  # type: ignore[misc]
            os.eventfd_write(subs[0x30].fd, 1)
        assert read(client, 0x10) == 111
    gc.collect()
    assert {int(name) for name in os.listdir("/proc/self/fd")} <= open_fds | {max(open_fds) + 1}


@pytest.mark.parametrize("method", ["reset", "restored", "check_state"])
def test_the_old_code_goes_on_with_a_file_that_it_had_closed_for_newer_code(tmp_path: Any, method: str) -> None:
    only = alone(tmp_path / "image")
    with served(code(1, more=only)) as (worker, client), sub_regions(client) as subs:
        os.eventfd_write(subs[0x30].fd, 1)
        assert on_loop(worker, lambda: worker.replace(code(10, more={**only, method: fails})())) is not None
        os.eventfd_write(subs[0x30].fd, 1)
        assert read(client, 0x10) == 2
        assert on_loop(worker, lambda: worker.replace(code(10, more=only)())) is None
        os.eventfd_write(subs[0x30].fd, 1)
        assert read(client, 0x10) == 12


def test_somebody_elses_file_leaves_the_old_code(tmp_path: Any) -> None:
    only, other = alone(tmp_path / "image"), alone(tmp_path / "other")
    with (tmp_path / "other").open("wb") as file, served(code(1, more=only)) as (worker, client):
        fcntl.flock(file, fcntl.LOCK_EX)
        write(client, 0x14, 7)
        assert "another device uses it" in str(on_loop(worker, lambda: worker.replace(code(10, more=other)())))
        assert read(client, 0x14) == 7
