"""Jobs that end because the client takes memory back: they are recorded before it goes, and so they are replayed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellwire.recording import Record, replay
from bellwire.recording.format import entries
from devices.test_unmapped_jobs import Worker
from joining import facing
from vfio_user import Client
from vmm.sdk import working


@pytest.mark.slow
def test_jobs_that_end_as_memory_is_taken_back_are_replayed_before_it_goes(tmp_path: Path) -> None:
    path, device = tmp_path / "a", Worker()
    taken = Record(device, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 24)
    with working(lambda: device, filters=[taken]) as sock, Client(sock) as client, facing(client) as guest:
        for _ in range(2):
            guest.map()
            guest.write(0, 3, offset=Worker.start.offset, size=4)
            guest.unmap()
        assert device.told == 12
    outcome = replay(path, Worker)
    assert (outcome.differences, outcome.complete) == ([], True)
    assert [entry.kind for entry in entries(path)].count("D") >= 4
