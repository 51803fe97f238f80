"""Filters in a worker, between a real client and the device: late replies, rings by descriptors, in and out."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from bellwire.filters import DmaRange, Duration, Filter, FilterError, Hook, Interrupt, Read, Ring, Write
from bellwire.serve.worker import Worker
from bellwire.testing import Guest
from bellwired import filtering
from devices.serving import MSIX, PATIENCE, Probe, eventfd, heard, read, running, sub_regions, wait_until, write
from vfio_user import Client, Disconnected, IoEventFd, IoRegionClient, IoRegionFd, Memory, RemoteError, TimedOut


class Look(Filter):
    def start(self) -> None:
        self.seen: list[str] = []

    def before_ring(self, ring: Ring) -> None:
        self.seen.append(f"{ring.name} {ring.value} x{ring.count} by {ring.mechanism}")

    def dma_map(self, range: DmaRange) -> None:
        self.seen.append(f"{'map' if range.mapped else 'unmap'} {range.address:#x}+{range.size:#x}")


class SlowReads(Filter):
    delays = True
    read = Duration(0.05)

    def before_read(self, read: Read) -> None:
        if read.place.name == "scratch":
            read.delay(self.read)


@contextlib.contextmanager
def watched(device: Probe, *filters: Filter, memory: Memory | None = None) -> Iterator[tuple[Worker, Client]]:
    ours, theirs = socket.socketpair()
    worker = Worker(device, connection=theirs)
    for each in filters:
        worker.served.filters.add(each)
    with running(worker), Client(ours, memory=memory) as client:
        client.write(7, 0x04, (6).to_bytes(2, "little"))
        yield worker, client


def on_loop(worker: Worker, function: Callable[..., Any], *arguments: Any) -> Any:
    done: Future[Any] = Future()
    worker.loop.hand_over(lambda: done.set_result(function(*arguments)))
    return done.result(PATIENCE)


def test_a_delayed_read_is_answered_late_and_the_device_goes_on_meanwhile() -> None:
    with watched(device := Probe(), SlowReads()) as (_, client), sub_regions(client) as found:
        device.scratch = 1
        begun = time.monotonic()
        waiting = threading.Thread(target=lambda: read(client, Probe.scratch.offset))
        waiting.start()
        bell = found[Probe.bell.offset]
        assert isinstance(bell, IoEventFd)
        os.eventfd_write(bell.fd, 2)
        assert read(client, Probe.fetched.offset) == 0
        waiting.join()
        assert time.monotonic() - begun >= 0.05
        wait_until(lambda: Probe.bell.__get__(device, Probe).rung == 2)


def test_rings_name_their_mechanism_and_their_count() -> None:
    look = Look()
    with watched(device := Probe(), look) as (_, client), sub_regions(client) as found:
        bell = found[Probe.bell.offset]
        assert isinstance(bell, IoEventFd)
        os.eventfd_write(bell.fd, 3)
        read(client, Probe.scratch.offset)
        write(client, Probe.bell.offset, 1)
        write(client, Probe.value_bell.offset, 7)
        assert look.seen == ["bell None x3 by ioeventfd", "bell None x1 by message", "value_bell 7 x1 by message"]
        assert device.bell.rung == 4


def test_a_filter_goes_in_and_out_while_a_client_is_served() -> None:
    look = Look()
    with watched(device := Probe()) as (worker, client), sub_regions(client) as found:
        bell = found[Probe.bell.offset]
        assert isinstance(bell, IoEventFd)
        read(client, Probe.fetched.offset)
        source = next(iter(worker.served._doorbell_fds._events.values()))  # type: ignore[union-attr]
        before = source.ring, source.guard
        on_loop(worker, worker.served.filters.add, look)
        assert (source.ring, source.guard) != before
        os.eventfd_write(bell.fd, 1)
        read(client, Probe.fetched.offset)
        on_loop(worker, worker.served.filters.remove, look)
        os.eventfd_write(bell.fd, 1)
        read(client, Probe.fetched.offset)
        assert look.seen == ["bell None x1 by ioeventfd"]
        assert device.bell.rung == 2
        assert (source.ring, source.guard) == before


def test_a_known_read_takes_the_new_path_at_once() -> None:
    class Answer(Filter):
        def before_read(self, read: Read) -> None:
            read.answer(0x42)

    with watched(Probe()) as (worker, client):
        assert read(client, Probe.fetched.offset) == 0
        assert read(client, Probe.fetched.offset) == 0
        answer = Answer()
        on_loop(worker, worker.served.filters.add, answer)
        assert read(client, Probe.fetched.offset) == 0x42
        on_loop(worker, worker.served.filters.remove, answer)
        assert read(client, Probe.fetched.offset) == 0


def test_the_client_s_maps_are_seen() -> None:
    look = Look()
    with watched(Probe(), look) as (_, client):
        client.dma_map(0x10000, 0x2000)
        client.dma_unmap(0x10000, 0x2000)
        assert look.seen == ["map 0x10000+0x2000", "unmap 0x10000+0x2000"]


def test_an_interrupt_without_a_listener_is_lost() -> None:
    class Outcomes(Filter):
        def start(self) -> None:
            self.seen: list[str] = []

        def after_interrupt(self, interrupt: Interrupt) -> None:
            self.seen.append(interrupt.outcome)

    look = Outcomes()
    with watched(Probe(), look) as (_, client), eventfd() as fd:
        write(client, Probe.trigger.offset, 1)
        client.trigger_eventfds(MSIX, 0, [fd])
        write(client, Probe.trigger.offset, 0)
        assert heard(fd)
        assert look.seen == ["pending", "sent"]


def test_a_client_that_leaves_takes_its_late_read_with_it() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(Probe(), connection=theirs)
    worker.served.filters.add(SlowReads(read=30))
    with running(worker):
        client = Client(ours)

        def read_for_ever() -> None:
            with pytest.raises(Disconnected):
                read(client, Probe.scratch.offset)

        waiting = threading.Thread(target=read_for_ever)
        waiting.start()
        wait_until(lambda: len(worker.served.filters.arrivals) == 1)
        ours.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: worker.served.session is None)
        waiting.join()
        client.close()
        assert len(worker.served.filters.arrivals) == 0


@pytest.mark.parametrize("posted", [True, False])
def test_a_delayed_write_is_done_before_the_read_behind_it(posted: bool) -> None:
    class SlowWrites(Filter):
        delays = True

        def before_write(self, write: Write) -> None:
            write.delay(0.01)

    with watched(Probe(), SlowWrites()) as (_, client):
        write(client, Probe.fetch.offset + 4, 5, posted=posted)
        assert read(client, Probe.fetch.offset + 4) == 5


def test_a_late_answer_that_cannot_be_sent_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(Probe(), connection=theirs)
    worker.served.filters.add(SlowReads(read=0.02))
    with running(worker):
        client = Client(ours)
        on_loop(worker, break_sending, worker)
        with pytest.raises(Disconnected):
            read(client, Probe.scratch.offset)
        client.close()
        wait_until(lambda: worker.served.session is None)


class Hooks(Filter):
    def before_hook(self, hook: Hook) -> None: ...


class Refuses(Filter):
    def start(self) -> None:
        raise ValueError("start failed")


def test_a_hook_that_raises_is_named_with_a_filter_of_hooks(caplog: pytest.LogCaptureFixture) -> None:
    with watched(Probe(), Hooks()) as (_, client), pytest.raises(RemoteError):
        write(client, Probe.fails.offset, 7)
    assert "Probe.fail failed at " in caplog.text


def test_a_filter_that_cannot_start_ends_the_worker_in_one_line() -> None:
    worker = Worker(Probe(), filters=[Refuses()])
    with pytest.raises(FilterError) as caught:
        worker.run()
    line = Refuses.start.__code__.co_firstlineno + 1
    assert str(caught.value) == f"filter refuses failed in start: {__file__}:{line}: ValueError: start failed"


def test_a_filter_that_cannot_start_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtering, "builtin", lambda: {"refuses": Refuses})
    with Guest(Probe) as guest, pytest.raises(FilterError, match=r"^filter refuses failed in start: .*: start failed$"):
        filtering.Switches(guest.device, guest.filters).do("add", "refuses")


def break_sending(worker: Worker) -> None:
    """What the session sends from now on finds nobody."""
    session = worker.served.session
    assert session is not None

    def fails(*_: object) -> None:
        raise TimedOut("the peer does not read")

    session._channel.send_whole = fails  # type: ignore[method-assign,assignment]


def test_what_comes_by_ioregionfd_is_seen_and_a_read_hurries_what_waits_before_it() -> None:
    class Slow(Look):
        delays = True

        def before_write(self, write: Write) -> None:
            self.seen.append(f"write {write.place.name}+{write.place.offset:#x} {write.value:#x} by {write.mechanism}")
            write.delay(30)

        def after_read(self, read: Read) -> None:
            self.seen.append(f"read {read.value:#x} by {read.mechanism}")

    look = Slow()
    with watched(device := Probe(), look) as (_, client), sub_regions(client) as found:
        bell, window = found[Probe.value_bell.offset], found[Probe.window.offset]
        assert isinstance(bell, IoRegionFd)
        assert isinstance(window, IoRegionFd)
        with contextlib.closing(IoRegionClient(bell.fd)) as wire:
            wire.post(bell.user_data, 0, b"\7\0\0\0")
            wait_until(lambda: bool(look.seen))
        with contextlib.closing(IoRegionClient(window.fd)) as wire:
            wire.write(0, 4, b"\x34\x12")
            assert device.seen == [("value", 7)]
            assert wire.read(0, 8, 4) == 0x5566_7788.to_bytes(4, "little")
            assert device.seen == [("value", 7), ("window", 4, 2, 0x1234)]
    assert look.seen == [
        "value_bell 7 x1 by ioregionfd",
        "write window+0x104 0x1234 by ioregionfd",
        "read 0x55667788 by ioregionfd",
    ]
