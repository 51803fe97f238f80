"""Packets through virtio-net and a tap, beside bare loops of writev and readv on a tap: sent, and received."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable

from bellwire.network.tap import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF, TUNSETVNETHDRSZ
from bellwire.virtio.fence import fence
from bench.initiator import DATA, LOOKS, Plugged, plugged
from bench.processes import PYTHON, cpus, pinned
from bench.samples import Results
from bench.virtio_start import start

PART = "network"
BARE = "bare loop"
SIZES = {"64 bytes": 64, "1514 bytes": 1514}
DEPTH = 64
RECEIVE, TRANSMIT = 0, 1  # the queues of the first pair
NAME = "bwbench0"
SIZE = 256
WRITE = 2  # a descriptor that the device writes
HEADER = bytes(12)
FRAME = b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5"  # broadcast, of an experimental type: no protocol takes it
_DESCRIPTOR = struct.Struct("<QIHH")
_REQUEST = struct.Struct("16sH22x")


def usable() -> bool:
    """Whether this process may create taps."""
    try:
        os.close(open_tap(NAME))
    except OSError:
        return False
    return True


def measure(results: Results, *, rounds: int, count: int) -> None:
    """Frames sent and received in a second. Nothing if this user may not create a tap."""
    if not usable():
        return
    available = cpus()
    driver, device = available[0], available[-1]
    for number in range(rounds):
        for name, size in SIZES.items():
            for subject in (PYTHON, BARE) if number % 2 else (BARE, PYTHON):
                if subject == BARE:
                    with pinned(device):
                        seconds = bare(size, count)
                else:
                    with plugged("virtio-net", device, f"tap={NAME}") as (card, _), pinned(driver):
                        sender = Sender(card, size)
                        sender.run(4 * DEPTH)
                        begin = time.perf_counter()
                        sender.run(count)
                        seconds = time.perf_counter() - begin
                results.add(PART, f"frames of {name}", subject, "/s", [count / seconds])
                results.add(PART, f"bytes in frames of {name}", subject, "MB/s", [count * size / seconds / 1e6])
                if subject == BARE:
                    seconds = bare_receiver(size, count, driver, device)
                else:
                    with plugged("virtio-net", device, f"tap={NAME}") as (card, _), pinned(driver):
                        receiver = Receiver(card, size)
                        receiver.run(WAITING)
                        seconds = receiver.run(count)
                results.add(PART, f"frames of {name} received", subject, "/s", [count // WAITING * WAITING / seconds])


class Sender:
    """One transmit queue with a frame of ``size`` bytes in each buffer."""

    def __init__(self, card: Plugged, size: int) -> None:
        memory = card.memory
        table, avail, used = (card.allocate(each) for each in (16 * SIZE, 6 + 2 * SIZE, 6 + 8 * SIZE))
        packet = HEADER + FRAME.ljust(size, b"\0")
        for slot in range(SIZE):
            at = DATA + 2048 * slot
            memory[at : at + len(packet)] = packet
            _DESCRIPTOR.pack_into(memory, table + 16 * slot, at, len(packet), 0, 0)
        self._avail = memory[avail : avail + 4 + 2 * SIZE].cast("H")
        self._used = memory[used : used + 4 + 8 * SIZE].cast("H")
        for slot in range(SIZE):
            self._avail[2 + slot] = slot
        self._sent = self._done = 0
        self._wait = card.step
        self._bell: Callable[[int], None] = start(card, TRANSMIT, (table, avail, used), SIZE)

    def run(self, count: int) -> None:
        """Send so many frames, at most DEPTH at a time. The buffers are used in turn."""
        avail, used = self._avail, self._used
        sent, done = self._sent, self._done
        last, end = sent + count, done + count
        while done < end:
            sent = min(last, done + DEPTH)
            avail[1] = sent & 0xFFFF
            fence()
            if not used[0]:
                self._bell(0)
            looks = 0
            enough = min(DEPTH // 2, end - done)
            while (came := used[1] - done & 0xFFFF) < enough:
                looks += 1
                if looks > LOOKS:
                    self._wait()
            done += came
        self._sent, self._done = sent, done


WAITING = 1024
"""Frames that wait in the tap before any is received."""


class Receiver:
    """One receive queue. Frames wait in the tap, then the device gets as many buffers as the ring has."""

    def __init__(self, card: Plugged, size: int) -> None:
        memory = card.memory
        table, avail, used = (card.allocate(each) for each in (16 * SIZE, 6 + 2 * SIZE, 6 + 8 * SIZE))
        for slot in range(SIZE):
            _DESCRIPTOR.pack_into(memory, table + 16 * slot, DATA + 2048 * slot, 2048, WRITE, 0)
        self._avail = memory[avail : avail + 4 + 2 * SIZE].cast("H")
        self._used = memory[used : used + 4 + 8 * SIZE].cast("H")
        for slot in range(SIZE):
            self._avail[2 + slot] = slot
        self._wait = card.step
        self._frame = FRAME.ljust(size, b"\0")
        self._done = 0
        self._bell: Callable[[int], None] = start(card, RECEIVE, (table, avail, used), SIZE)

    def run(self, count: int) -> float:
        """Receive about so many frames. Returns the seconds without those in which they were sent.

        When a quarter of the buffers has come back, they are offered again: the device need not wait for the driver.
        """
        avail, used, done = self._avail, self._used, self._done
        seconds = 0.0
        with sender() as host:
            for _ in range(count // WAITING):
                for _ in range(WAITING):
                    host.send(self._frame)
                begin = time.perf_counter()
                end = done + WAITING
                while done < end:
                    avail[1] = min(done + SIZE, end) & 0xFFFF
                    fence()
                    if not used[0]:
                        self._bell(RECEIVE)
                    looks = 0
                    enough = min(SIZE // 4, end - done)
                    while (came := used[1] - done & 0xFFFF) < enough:
                        looks += 1
                        if looks > LOOKS:
                            self._wait()
                    done += came
                seconds += time.perf_counter() - begin
        self._done = done
        return seconds


def sender() -> socket.socket:
    """A packet socket on the tap: what it sends waits in the tap, which has room for it."""
    from pyroute2 import IPRoute

    with IPRoute() as routes:
        routes.link("set", index=socket.if_nametoindex(NAME), txqlen=2 * WAITING)
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    found.bind((NAME, 0))
    return found


def bare_receiver(size: int, count: int, driver: int, device: int) -> float:
    """Seconds for so many reads from the tap on one CPU, one after the other. Frames come as they do for the device:
    they are sent on the other CPU, and wait.
    """
    fd = open_tap(NAME)
    seconds, frame, buffer = 0.0, FRAME.ljust(size, b"\0"), [bytearray(2048)]
    try:
        with sender() as host:
            for _ in range(count // WAITING):
                with pinned(driver):
                    for _ in range(WAITING):
                        host.send(frame)
                with pinned(device):
                    begin = time.perf_counter()
                    for _ in range(WAITING):
                        os.readv(fd, buffer)
                    seconds += time.perf_counter() - begin
    finally:
        os.close(fd)
    return seconds


def bare(size: int, count: int) -> float:
    """Seconds for so many system calls, one after the other."""
    fd = open_tap(NAME)
    try:
        packet = [HEADER, FRAME.ljust(size, b"\0")]
        begin = time.perf_counter()
        for _ in range(count):
            os.writev(fd, packet)
        return time.perf_counter() - begin
    finally:
        os.close(fd)


def open_tap(name: str) -> int:
    """A tap that is up and takes frames with a virtio header. Raises an OSError if that is not permitted."""
    from pyroute2 import IPRoute

    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, _REQUEST.pack(name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", len(HEADER)))
        with IPRoute() as routes:
            (index,) = routes.link_lookup(ifname=name)
            routes.link("set", index=index, state="up")
    except BaseException:
        os.close(fd)
        raise
    return fd
