"""Transfers by the kernel: what it is told of each, and what becomes of those that it refuses or cuts short."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bellwire import linux
from bellwire.model.jobs import Job
from bellwire.storage import aio
from bellwire.storage.aio import DirectPool, Transfer, direct_pool


class Kernel:
    """What has been submitted, and what ends; it refuses all while ``full``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.begun: dict[int, tuple[int, int, int, bool]] = {}
        self.results: list[tuple[int, int]] = []
        self.full = self.closed = False
        self.told = -1

    def submit(self, slot: int, fd: int, vectors: Any, offset: int, *, write: bool, told: int) -> bool:
        if not self.full:
            assert slot not in self.begun
            self.begun[slot] = fd, len(vectors) // 2, offset, write
            self.told = told
        return not self.full

    def end(self, slot: int, result: int) -> None:
        self.results.append((slot, result))
        os.eventfd_write(self.told, 1)

    def ended(self) -> list[tuple[int, int]]:
        results, self.results = self.results, []
        for slot, _ in results:
            del self.begun[slot]
        return results

    def close(self) -> None:
        self.closed = True


class Device:
    """Watches as a device does, and runs what is ready when it is asked to."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.pools: list[object] = []

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def join_pool(self, pool: object) -> None:
        self.pools.append(pool)

    def run(self) -> None:
        for callback in list(self.watched.values()):
            callback()


class Threads:
    """A pool that only notes."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.calls: list[str] = []
        self.left = False

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def finish(self) -> bool:
        self.calls.append("finish")
        return self.left

    def settle(self) -> None:
        self.calls.append("settle")

    def close(self) -> None:
        self.calls.append("close")


class Disk:
    """As far as a transfer looks at one."""

    def __init__(self, direct: bool = True) -> None:
        self.fd, self.direct = 77, direct

    def read(self, *_: object) -> None: ...
    def write(self, *_: object) -> None: ...


class Bench:
    """A pool on a kernel that does what the test says."""

    def __init__(self) -> None:
        self.device, self.threads = Device(), Threads()
        self.done: list[list[Job]] = []
        self.pool = DirectPool(self.device, self.threads, self.done.append)  # type: ignore[arg-type]
        self.kernel: Kernel = self.pool._kernel  # type: ignore[assignment]

    def transfer(self, size: int = 512, *, write: bool = False, direct: bool = True) -> Transfer:
        job = Transfer(Disk(direct), [bytearray(size - 5), bytearray(5)], 4096, write=write)  # type: ignore[arg-type]
        self.pool.submit(job)
        return job


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(aio, "AioContext", Kernel)
    bench = Bench()
    yield bench
    bench.kernel.results = [(slot, 512) for slot in bench.kernel.begun]
    if bench.kernel.begun:
        os.eventfd_write(bench.kernel.told, 1)
    bench.pool.close()


@pytest.mark.parametrize("write", [False, True])
def test_a_transfer_goes_to_the_kernel_and_comes_back_whole(bench: Bench, write: bool) -> None:
    job = bench.transfer(write=write)
    ((slot, told),) = bench.kernel.begun.items()
    assert told == (77, 2, 4096, write)
    bench.device.run()
    assert bench.done == []
    bench.kernel.end(slot, 512)
    bench.device.run()
    assert (bench.done, bench.threads.jobs) == ([[job]], [])
    bench.device.run()
    assert bench.done == [[job]]


def test_results_that_gather_come_together(bench: Bench) -> None:
    jobs = [bench.transfer() for _ in range(3)]
    for slot in list(bench.kernel.begun):
        bench.kernel.end(slot, 512)
    bench.device.run()
    assert [sorted(map(id, batch)) for batch in bench.done] == [sorted(map(id, jobs))]


@pytest.mark.parametrize("result", [511, 0, -errno.EIO, -errno.EAGAIN, 513])
def test_a_transfer_that_fails_or_is_cut_short_is_done_again_by_a_thread(bench: Bench, result: int) -> None:
    job = bench.transfer()
    bench.kernel.end(next(iter(bench.kernel.begun)), result)
    bench.device.run()
    assert (bench.done, bench.threads.jobs) == ([], [job])


def test_what_is_no_transfer_or_not_direct_goes_to_threads(bench: Bench) -> None:
    other = Job(print)
    bench.pool.submit(other)
    cached = bench.transfer(direct=False)
    assert (bench.threads.jobs, bench.kernel.begun) == ([other, cached], {})


def test_what_the_kernel_refuses_goes_to_threads_and_leaves_its_slot(bench: Bench) -> None:
    bench.kernel.full = True
    jobs = [bench.transfer() for _ in range(300)]
    assert bench.threads.jobs == jobs
    bench.kernel.full = False
    for _ in range(256):
        bench.transfer()
    assert (len(bench.kernel.begun), bench.kernel.most, len(bench.threads.jobs)) == (256, 256, 300)
    last = bench.transfer()
    assert bench.threads.jobs[300:] == [last]
    bench.kernel.end(17, 512)
    bench.device.run()
    bench.transfer()
    assert 17 in bench.kernel.begun


def test_finishing_waits_for_the_kernel_then_for_threads_and_tells_later(bench: Bench) -> None:
    job = bench.transfer()
    bench.kernel.end(next(iter(bench.kernel.begun)), 512)
    assert bench.pool.finish()
    assert (bench.kernel.begun, bench.threads.calls, bench.done) == ({}, ["finish"], [])
    bench.device.run()
    assert bench.done == [[job]]


def test_finishing_with_nothing_under_way_wakes_nobody(bench: Bench) -> None:
    assert not bench.pool.finish()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(next(iter(bench.device.watched)))
    bench.threads.left = True
    assert bench.pool.finish()


def test_settling_waits_and_forgets_what_has_ended(bench: Bench) -> None:
    bench.transfer()
    bench.kernel.end(next(iter(bench.kernel.begun)), 512)
    bench.pool.finish()
    bench.transfer()
    bench.kernel.end(next(iter(bench.kernel.begun)), 511)
    bench.pool.settle()
    assert (bench.kernel.begun, bench.threads.calls, bench.threads.jobs) == ({}, ["finish", "settle"], [])
    with pytest.raises(BlockingIOError):
        os.eventfd_read(next(iter(bench.device.watched)))
    bench.device.run()
    assert bench.done == []
    for _ in range(256):
        bench.transfer()
    assert len(bench.kernel.begun) == 256


def test_a_closed_pool_has_freed_what_it_had_and_closes_once(bench: Bench) -> None:
    (wake,) = bench.device.watched
    for _ in range(2):
        bench.pool.close()
    assert (bench.kernel.closed, bench.device.watched, bench.threads.calls) == (True, {}, ["settle", "close"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(wake)


def test_without_a_context_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    device, threads = Device(), Threads()
    monkeypatch.setattr(aio, "AioContext", Kernel)
    pool = direct_pool(device, threads, print)  # type: ignore[arg-type]
    assert isinstance(pool, DirectPool)
    assert device.pools == [pool]
    pool.close()

    def refuse(_: int) -> None:
        raise OSError(errno.EAGAIN, "no more")

    monkeypatch.setattr(aio, "AioContext", refuse)
    found: object = direct_pool(device, threads, print)  # type: ignore[arg-type]
    assert found is threads
    assert device.pools == [pool]


# -- what the kernel is told


class Calls:
    """System calls of a context, by number; submissions by their bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.iocb = b""
        self.answer = 1
        self.events: list[tuple[int, int]] = []
        monkeypatch.setattr(linux, "_syscall", self.call)
        monkeypatch.setattr(linux, "_submit", self.submit)

    def call(self, number: int, *arguments: Any) -> int:
        self.made.append((number, *(getattr(each, "value", each) for each in arguments if not hasattr(each, "_obj"))))
        if number == 208:
            events = arguments[3]._obj
            for place, (slot, result) in enumerate(self.events):
                events[place].data, events[place].result = slot, result
            return len(self.events) if self.events else self.answer
        return 0

    def submit(self, number: int, _context: object, count: Any, pointers: Any) -> int:
        self.made.append((number, count.value))
        self.iocb = ctypes.string_at(pointers._obj.value, 64)
        return self.answer


def test_a_transfer_is_told_as_the_kernels_header_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """struct iocb of linux/aio_abi.h, and the system calls of x86-64."""
    calls = Calls(monkeypatch)
    context = linux.AioContext(4)
    views = [bytearray(3), bytearray(5)]
    vectors = linux.io_vectors(views)
    for write, opcode in ((False, 7), (True, 8)):
        assert context.submit(2, 9, vectors, 0x1122, write=write, told=11)
        fields = [int.from_bytes(calls.iocb[at : at + size], "little") for at, size in (
            (0, 8), (8, 4), (12, 4), (16, 2), (18, 2), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 4),
        )]  # fmt: skip
        assert fields == [2, 0, os.RWF_NOWAIT, opcode, 0, 9, ctypes.addressof(vectors), 2, 0x1122, 0, 1, 11]
    for answer in (0, -1, 2):
        calls.answer = answer
        assert not context.submit(0, 9, vectors, 0, write=False, told=11)
    context.close()
    assert [made[0] for made in calls.made] == [206, 209, 209, 209, 209, 209, 207]
    assert calls.made[0][1] == 4
    assert calls.made[1] == (209, 1)


def test_ends_are_asked_for_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    context = linux.AioContext(4)
    calls.events = [(3, 512), (1, -5)]
    assert context.ended() == [(3, 512), (1, -5)]
    assert calls.made[-1] == (208, 0, 0, 4, None)
    calls.events, calls.answer = [], -1
    assert context.ended() == []


def test_vectors_are_pairs_of_address_and_length() -> None:
    views: list[Any] = [bytearray(b"abc"), memoryview(bytearray(b"12345"))[1:3], memoryview(b"read-only")]
    vectors = linux.io_vectors(views)
    assert [ctypes.string_at(vectors[at], vectors[at + 1]) for at in (0, 2, 4)] == [b"abc", b"23", b"read-only"]
    assert len(vectors) == 6
    views[0].append(0)  # nothing holds the buffers any more
