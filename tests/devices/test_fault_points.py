"""A worker is killed at any line of our code. The client sees what it would have seen without that."""

from __future__ import annotations

import errno
import functools
import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.bundled.bell import Bell
from bellwire.filters import Filter, Read
from bellwire.filters.builtin.delay import Delay
from bellwire.serve.sources import EventSource
from dying import PATIENCE, Filters, Outcome, play
from vfio_user import (
    Client,
    Command,
    IoEventFd,
    IoRegionClient,
    IoRegionFd,
    IrqIndex,
    RegionIndex,
    RemoteError,
    ShadowBell,
    ShadowIoEventFd,
)
from vfio_user.channel import HEADER
from vfio_user.transfer import REGION_ACCESS

pytestmark = [pytest.mark.slow]

IDENT, SCRATCH, IRQ_NOW = 0x00, 0x04, 0x08
READ_REPLY = HEADER.size + REGION_ACCESS.size + 4
COMMAND = 0x04  # in config space
WILDCARD_COUNT, VALUE_COUNT, LATEST_VALUE = 0x40, 0x50, 0xDC
BELLS = 0x000, 0x020, 0x040, 0x100  # by ioeventfd, by ioregionfd, by shadow ioeventfd, an ioregion
GAP = "sent = "
"""How the lines begin that lose a reply: it is noted as sent by then, and the kernel does not have it yet."""
STEPS = mmap.mmap(-1, mmap.PAGESIZE)
"""Shared by all processes of a test: how far the client and the first worker are."""
CLIENT, WORKER = 0, 1


class Repeating(Bell, vendor=0x1234, device=0xBE12, class_code=0x088000, repeats=True):
    """A device whose hooks may run again: each sets what it sets at once."""

    def recovered(self, torn: bool) -> None:
        """Nothing is lost."""


class Slow(Filter):
    """Lets each read wait."""

    delays = True

    def before_read(self, read: Read) -> None:
        STEPS[WORKER] = max(STEPS[WORKER], 1)
        read.delay(0.1)


def die_once(source: EventSource[Any], run: Callable[[EventSource[Any]], None] = EventSource.run) -> None:
    """Kill the worker before the hook of a ring, when the client has rung again. Its successor runs hooks."""
    if STEPS[WORKER] == 1:
        STEPS[WORKER] = 2
        reach(CLIENT, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    run(source)


def reach(who: int, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while STEPS[who] < step and time.monotonic() < deadline:
        os.sched_yield()


def ring_twice(client: Client) -> int:
    """A read waits for its answer, a ring waits for its hook, and another one is in its eventfd, when the worker dies.

    Returns how many rings were counted.
    """
    wildcard = next(sub for sub in client.io_fds(1) if sub.offset == BELLS[0])
    with socket.socket(fileno=os.dup(client.fileno())) as wire:
        wire.settimeout(PATIENCE)
        wire.send(command_to_read(IDENT))
        reach(WORKER, 1)
        os.eventfd_write(wildcard.fd, 1)
        reach(WORKER, 2)
        os.eventfd_write(wildcard.fd, 1)
        STEPS[CLIENT] = 1
        wire.recv(READ_REPLY, socket.MSG_WAITALL)
        wire.send(command_to_read(WILDCARD_COUNT))
        return int.from_bytes(wire.recv(READ_REPLY, socket.MSG_WAITALL)[-4:], "little")


def command_to_read(offset: int) -> bytes:
    command = REGION_ACCESS.pack(offset, 0, 4)
    return HEADER.pack(1, Command.REGION_READ, HEADER.size + len(command), 0, 0) + command


def talk(client: Client) -> list[int]:
    """Reads and writes of registers, with hooks and without, posted and not."""

    def read(offset: int) -> int:
        return int.from_bytes(client.read(0, offset, 4), "little")

    seen = [read(IDENT)]
    for turn in range(1, 4):
        client.write(0, SCRATCH, turn.to_bytes(4, "little"), posted=turn % 2 == 0)
        seen += [read(SCRATCH), read(IDENT), read(SCRATCH)]
        client.write(0, SCRATCH, bytes(4), posted=True)
    return seen


def insist(command: Callable[[], object]) -> None:
    """Try a command again that has failed because its descriptors had been received, and were lost."""
    try:
        command()
    except RemoteError as error:
        if error.errno != errno.EIO:
            raise
        command()


def set_up(client: Client) -> list[object]:
    """Memory and interrupts are set up, used, and taken away. A command that has failed is tried again."""

    rung = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 1 << 16)
    client.write(RegionIndex.CONFIG, COMMAND, b"\x06\x00")
    insist(lambda: client.trigger_eventfds(IrqIndex.MSIX, 0, rung))
    insist(lambda: client.dma_map(0, 1 << 16, memory))
    insist(lambda: client.release_eventfds(IrqIndex.MSIX, 0, 1))
    client.write(0, IRQ_NOW, bytes(4))
    client.write(0, IRQ_NOW, b"\x01\0\0\0")
    seen: list[object] = [has_come(fd) for fd in rung]
    client.dma_unmap(0, 1 << 16)
    return [*seen, client.irq_info(IrqIndex.MSIX).count, client.region_info(1).info.size]


def ring(client: Client) -> list[int]:
    """Doorbells by every mechanism."""
    subs = {sub.offset: sub for sub in client.io_fds(1)}
    wildcard, value, latest, region = (subs[at] for at in BELLS)
    assert isinstance(wildcard, IoEventFd)
    assert isinstance(value, IoRegionFd)
    assert isinstance(latest, ShadowIoEventFd)
    assert isinstance(region, IoRegionFd)
    values, commands, shadow = IoRegionClient(value.fd), IoRegionClient(region.fd), ShadowBell(latest)
    seen = []
    for turn in (1, 2, 3):
        number = turn.to_bytes(4, "little")
        os.eventfd_write(wildcard.fd, 1)
        values.post(value.user_data, 0, number)
        shadow.ring(number)
        commands.write(region.user_data, 4, number)
        seen += [int.from_bytes(client.read(0, LATEST_VALUE, 4), "little")]
        # A hook that counts may count twice if it runs again. None is left out.
        seen += [min(turn, int.from_bytes(client.read(0, at, 4), "little")) for at in (WILDCARD_COUNT, VALUE_COUNT)]
        seen += [int.from_bytes(commands.read(region.user_data, 4, 4), "little")]
    return seen


def mask(client: Client) -> list[object]:
    """A vector is masked, triggered and unmasked."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    client.write(RegionIndex.CONFIG, COMMAND, b"\x06\x00")
    insist(lambda: client.trigger_eventfds(IrqIndex.MSIX, 1, [fd]))
    seen: list[object] = []
    for _ in range(2):
        client.mask(IrqIndex.MSIX, 1, 1)
        client.write(0, IRQ_NOW, b"\1\0\0\0")
        seen.append(has_come(fd))
        client.unmask(IrqIndex.MSIX, 1, 1)
        seen += [has_come(fd), os.eventfd_read(fd) > 0]
    return seen


def has_come(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


SCRIPTS: list[Callable[[Client], object]] = [talk, set_up, ring, mask]


def slow_reads() -> list[Filter]:
    """Each read waits, and is answered late."""
    return [Delay(read="1ms")]


@functools.cache
def undisturbed(script: Callable[[Client], object], filters: Filters = list) -> Outcome:
    return play(script, Repeating, filters=filters)


def test_a_ring_that_was_taken_is_not_lost_to_a_read_that_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    STEPS[CLIENT] = STEPS[WORKER] = 0
    monkeypatch.setattr(EventSource, "run", die_once)
    outcome = play(ring_twice, Repeating, filters=lambda: [Slow()])
    assert STEPS[WORKER] == 2
    assert outcome.seen == 2


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_client_gets_late_replies_in_spite_of_a_death_between_any_two_lines(data: st.DataObject) -> None:
    before = undisturbed(talk, slow_reads)
    outcome = play(talk, Repeating, data.draw(st.integers(1, before.lines)), slow_reads)
    if not outcome.killed.startswith(GAP):
        assert outcome.seen == before.seen


@pytest.mark.parametrize("script", SCRIPTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_client_sees_nothing_of_a_death_between_any_two_lines(
    script: Callable[[Client], object], data: st.DataObject
) -> None:
    outcome = play(script, Repeating, data.draw(st.integers(1, undisturbed(script).lines)))
    if not outcome.killed.startswith(GAP):
        assert outcome.seen == undisturbed(script).seen
