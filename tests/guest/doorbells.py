"""What the tests of the patched QEMU share: its machine, bell in it, and what came by descriptor or by message."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable

import pytest

from attached import Device, Served
from machine import Machine
from vfio_user import Command

LAST_BAR = 5
PATIENCE = 20.0


@pytest.fixture
def drive(patched_drive: Callable[..., Machine]) -> Callable[..., Machine]:
    """A machine of the patched QEMU, here."""
    return patched_drive


@pytest.fixture
def served(serve: Callable[[Device], Served]) -> Served:
    """The bell."""
    return serve(Device("bell"))


def written(served: Served) -> list[tuple[int, int]]:
    """Region and offset of each REGION_WRITE to a BAR."""
    writes = [seen for seen in served.tap.messages() if seen.command == Command.REGION_WRITE and seen.to_server]
    places = [struct.unpack_from("<QI", seen.start) for seen in writes]
    return [(region, offset) for offset, region in places if region <= LAST_BAR]


def rung(fd: int) -> int:
    """How often an eventfd was signalled since it was last asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def gone(served: Served, times: int) -> bool:
    """Whether that many clients have gone."""
    return served.log.count("client gone") == times


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        select.select([], [], [], 0.01)
