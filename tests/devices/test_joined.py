"""Real devices behind the protocol, in the test's own thread."""

from __future__ import annotations

import os
import struct
import threading

from bellwire.bundled.edu import Edu
from bellwire.testing.joined import joined
from devices.serving import MEMORY_AND_MASTER, Probe
from vfio_user import RegionIndex


class Memory(bytearray):
    """Guest memory from address 0 on."""

    def read(self, address: int, count: int) -> bytes:
        return bytes(self[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self[address : address + len(data)] = data


def test_a_device_is_read_written_and_rung_in_one_thread() -> None:
    threads = threading.active_count()
    device = Probe()
    with joined(device) as client:
        assert client.read(RegionIndex.CONFIG, 0, 4) == bytes.fromhex("3412feca")
        client.write(0, 0, struct.pack("<I", 7), posted=True)
        assert client.read(0, 0, 4) == struct.pack("<I", 7)
        assert device.seen == [("scratch", 7)]
        assert threading.active_count() == threads


def test_a_request_with_a_descriptor_may_follow_a_posted_write() -> None:
    device, fd = Probe(), os.memfd_create("memory")
    os.ftruncate(fd, 4096)
    with joined(device) as client:
        client.write(0, 0, struct.pack("<I", 7), posted=True)
        client.dma_map(0, 4096, fd)
        assert device.seen == [("scratch", 7)]
    os.close(fd)


def test_a_timer_of_a_device_runs_between_calls() -> None:
    memory = Memory(1 << 16)
    memory[:8] = b"by timer"
    with joined(Edu(), memory=memory) as client:
        client.dma_map(0, 1 << 16)
        client.write(RegionIndex.CONFIG, 4, struct.pack("<H", MEMORY_AND_MASTER))
        for source, destination, command in ((0, 0x40000, 1), (0x40000, 0x100, 3)):
            for register, value in ((0x80, source), (0x88, destination), (0x90, 8), (0x98, command)):
                client.write(0, register, struct.pack("<Q", value))
            while client.read(0, 0x98, 8)[0] & 1:
                pass
        assert memory[0x100:0x108] == b"by timer"
