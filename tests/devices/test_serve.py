"""A device served from a test or a script."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bellwire import Bar, Option, PciDevice
from bellwire.serve.blame import DeviceFailed
from bellwire.testing import Guest, serve
from vfio_user import Client


class Small(PciDevice, vendor=0x1234, device=0x5E12, class_code=0x088000):
    fails = Option("")
    mmio = Bar(0, size=4096)
    scratch = mmio.reg(0x00, reset=7)
    row = mmio.ioregion(0x100, 16, bell=4)
    events = mmio.ioregion(0x200, 16, bell=4)

    def setup(self) -> None:
        self.closed = False
        self.seen: list[tuple[str, int, int]] = []
        self.ring_by_event(Small.events, 2)
        if self.fails == "setup":
            raise KeyError("nothing")

    def close(self) -> None:
        self.closed = True
        if self.fails == "close":
            raise KeyError("closing")

    @row.write
    def row_written(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("row", offset, value))

    @events.write
    def events_written(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("value", offset, value))

    @events.ring
    def events_rung(self, offset: int) -> None:
        self.seen.append(("event", offset, 0))


def test_a_client_finds_it_at_its_path() -> None:
    with serve(Small) as served, Client.connect(served.path) as client:
        assert client.read(0, Small.scratch.offset, 4) == b"\x07\0\0\0"
        client.write(0, Small.scratch.offset, b"\x09\0\0\0")
        assert served.device.scratch == 9


def test_nothing_is_left_of_it() -> None:
    before = threading.active_count()
    with serve(Small) as served, Client.connect(served.path):
        pass
    assert served.device.closed
    assert not served.path.parent.exists()
    assert threading.active_count() == before


def test_it_is_served_where_it_is_wanted_to_an_instance_too(tmp_path: Path) -> None:
    with serve(Small(), path=tmp_path / "here") as served:
        assert served.path == tmp_path / "here"
        Client.connect(tmp_path / "here").close()
    assert not served.path.exists()


@pytest.mark.parametrize("when", ["setup", "close"])
def test_what_fails_in_it_comes_out_of_the_block(when: str) -> None:
    before = threading.active_count()
    with pytest.raises(DeviceFailed, match=f"Small.{when} failed at"), serve(Small, fails=when):
        pass
    assert threading.active_count() == before


def test_a_row_of_doorbells_rings_as_it_travels() -> None:
    with Guest(Small) as guest:
        guest.ring(Small.row, 5, index=2)
        guest.ring(Small.events, 6, index=1)
        guest.ring(Small.events, 7, index=2)
        assert guest.device.seen == [("row", 8, 5), ("event", 4, 0), ("value", 8, 7)]
        with pytest.raises(IndexError, match="has 4 doorbells in a row, no 4"):
            guest.ring(Small.row, index=4)
