"""Turns of a worker: what a ring has seen by the time that its hook runs, and where interrupts go."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bellwire.serve.served import Served
from devices.serving import MSIX, Probe, eventfd, heard, served, sub_regions, wait_until, write


def test_a_ring_that_comes_after_the_wait_sees_the_write_posted_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Served.wait
    late: list[Callable[[], None]] = []

    def wait_and_go_on(turns: Served) -> dict[int, int]:
        ready = wait(turns)
        while late:
            late.pop()()
        return ready

    monkeypatch.setattr(Served, "wait", wait_and_go_on)
    device = Probe()
    with served(device) as client, sub_regions(client) as subs:
        bell = subs[Probe.bell.offset].fd

        def write_and_ring() -> None:
            write(client, Probe.scratch.offset, 2, posted=True)
            os.eventfd_write(bell, 1)

        late.append(write_and_ring)
        os.eventfd_write(bell, 1)
        wait_until(lambda: bool(device.seen[1:]))
        assert device.seen == [("scratch", 2), ("ring", 2, 2)]


def test_a_vector_goes_to_the_eventfd_that_the_client_has_set_last() -> None:
    with served(Probe()) as client, eventfd() as first, eventfd() as second:
        for fd in (first, second):
            client.trigger_eventfds(MSIX, 0, [fd])
            write(client, Probe.trigger.offset, 0)
            assert heard(fd)
            assert not heard(first, 0)
        client.release_eventfds(MSIX, 0, 1)
        write(client, Probe.trigger.offset, 0)
        assert not heard(second, 0)
        client.trigger_eventfds(MSIX, 0, [first])
        assert heard(first), "the trigger was pending"
