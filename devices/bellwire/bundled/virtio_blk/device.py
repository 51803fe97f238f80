"""virtio-blk: a disk (virtio 1.2 §5.2) on a raw image, a block device, or memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns

from bellwire import GuestError, Job, Meter, Option, Pool, StateError
from bellwire.bundled.virtio_blk.at_once import AT_ONCE, ENOUGH, Writes, at_once
from bellwire.bundled.virtio_blk.request import (
    IN,
    MOST_SEGMENTS,
    OK,
    SECTOR,
    Blk,
    Failure,
    Request,
    Result,
    Type,
    discard,
    spans,
    write_zeroes,
)
from bellwire.storage import LARGEST, Disk, KeptDisks, MemoryDisk, check_blocks
from bellwire.storage.aio import Transfer, direct_pool
from bellwire.virtio import Chain, VirtioDevice, Virtqueue, field
from bellwire.virtio.virtqueue import AtOnce

MOST_QUEUES = 16
QUEUE_SIZE = 256
LARGEST_PIECE = 256 << 10  # bytes: a queue full of pieces, with header and status, is within the limit of a chain
MOST_SECTORS = 1 << 22  # in one segment to discard or zero: 2 GiB
ID_SIZE = 20
TOGETHER = 16
"""Writes to the page cache that one thread does, one after the other: each takes about as long as a wake-up."""


def identity(text: str) -> str | None:
    """What was expected, if ``text`` is too long for GET_ID (§5.2.6); else None."""
    return None if len(text.encode(errors="surrogateescape")) <= ID_SIZE else f"at most {ID_SIZE} bytes"


def offload_fault(text: str) -> str | None:
    """What was expected, if ``text`` names another than this device; else None. Linux has no vhost-blk."""
    return None if text == "none" else "none: the kernel has no back end for disks (a program: vhost, with type=blk)"


class VirtioBlk(
    VirtioDevice, kind=2, queues=MOST_QUEUES, queue_size=QUEUE_SIZE, class_code=0x010000, name="virtio-blk"
):
    """A disk with one or more request queues: give it as many as the guest has processors."""

    image = Option(Path(), help="raw file or block device; without one, memory")
    size = Option(
        0,
        least=0,
        most=LARGEST,
        help="bytes of memory (default 64M), or of an image that is created",
    )
    shrink = Option(False, help="allow the next size= to make the disk smaller, which destroys data")
    readonly = Option(False, help="refuse every write")
    serial = Option("bellwire", check=identity, help="the serial number (GET_ID), at most 20 bytes")
    block_size = Option(512, choices=(512, 1024, 2048, 4096), help="bytes of a logical block")
    queues = Option(1, least=1, most=MOST_QUEUES, help="request queues")
    threads = Option(4, least=1, most=64, help="threads that wait for the image")
    direct = Option(False, help="bypass the page cache (O_DIRECT)")
    offload = Option("none", check=offload_fault, help="who moves the data: none, which is this device")
    incoming = Option(False, help="another device has the image, until this one goes on with its migrated state")

    capacity = field(0x00, size=8)
    size_max = field(0x08, reset=LARGEST_PIECE)
    seg_max = field(0x0C, reset=QUEUE_SIZE - 2)
    cylinders = field(0x10, size=2, access="reserved")  # SeaBIOS reads the geometry, though no feature offers it
    heads = field(0x12, size=1, access="reserved")
    sectors = field(0x13, size=1, access="reserved")
    blk_size = field(0x14)
    writeback = field(0x20, size=1, access="rw", reset=1)
    num_request_queues = field(0x22, size=2)
    max_discard_sectors = field(0x24, reset=MOST_SECTORS)
    max_discard_seg = field(0x28, reset=MOST_SEGMENTS)
    discard_sector_alignment = field(0x2C, reset=1)
    max_write_zeroes_sectors = field(0x30, reset=MOST_SECTORS)
    max_write_zeroes_seg = field(0x34, reset=MOST_SEGMENTS)
    write_zeroes_may_unmap = field(0x38, size=1, reset=1)

    kept: KeptDisks
    disk: Disk
    budget: int
    """Bytes that may still be moved at once in this turn."""
    told: int
    """The budget at which the driver is told of completions."""
    fast: AtOnce | None
    writes: list[Writes]
    """Those that the threads get at the end of the turn."""
    moved: list[int]
    """Reads, bytes read, writes, bytes written at once and by threads. Reads at once are added batch by batch."""
    meter: Meter
    workers: Pool

    def check_options(self) -> None:
        """Refuse a size that is no whole number of blocks."""
        check_blocks(self.size, self.block_size)

    def setup(self) -> None:
        """Open the image or the memory, and make the pool."""
        self.kept = KeptDisks(self)
        if self.image != Path():
            self.disk = self.kept.image(
                "disk",
                self.image,
                readonly=self.readonly,
                size=self.size,
                direct=self.direct,
                block=self.block_size,
                lock=not self.incoming,
            )
            self.awaits = self.incoming
        else:
            self.disk = self.kept.memory("disk", self.size or 64 << 20, block=self.block_size)
            self.disk.readonly = self.readonly
        self.moved = [0, 0, 0, 0, 0]
        self.meter = Meter(self, self.totals)
        threads = self.pool(self.threads, self.finished)
        self.workers = direct_pool(self, threads, self.finished) if self.direct else threads
        self.writes = []
        self.fast = None if self.direct else partial(at_once, self)

    def saving(self) -> None:
        """Refuse a snapshot that would lack the content of a disk in memory."""
        if isinstance(self.disk, MemoryDisk):
            self.disk.check_snapshot()

    def halted(self) -> None:
        """Let the device that goes on elsewhere have the image."""
        self.disk.unlock()
        self.awaits = self.image != Path()

    def resumed(self) -> None:
        """Have the image back, or from the device that has moved here."""
        self.disk.lock()
        self.awaits = False

    def close(self) -> None:
        """End the threads, and close the image."""
        self.workers.close()
        self.disk.close()
        super().close()

    def totals(self) -> dict[str, tuple[int, int]]:
        """Operations and bytes, for the meter."""
        reads, read, writes, at_once, by_threads = self.moved
        return {"read": (reads, read), "write": (writes, at_once + by_threads)}

    @property
    def queue_count(self) -> int:
        """The number of request queues that the option gives."""
        return self.queues

    def features(self) -> set[int]:
        """The features of the disk. A read-only disk offers no DISCARD and no WRITE_ZEROES."""
        offered: set[int] = {Blk.SIZE_MAX, Blk.SEG_MAX, Blk.BLK_SIZE, Blk.FLUSH, Blk.CONFIG_WCE}
        offered |= {Blk.RO} if self.readonly else {Blk.DISCARD, Blk.WRITE_ZEROES}
        return offered | ({Blk.MQ} if self.queues > 1 else set())

    def recovered(self, torn: bool) -> None:
        """Do again what was under way. It does no harm to read or write the same twice."""
        if isinstance(self.disk, MemoryDisk) and not self.disk.inherited:
            raise StateError("the disk was memory of the process that has died")
        super().recovered(torn)

    def stopped(self) -> None:
        """Wait for the threads: they may use guest memory."""
        self.workers.settle()

    # -- configuration (§5.2.4)

    @capacity.read
    def read_capacity(self) -> int:
        """The capacity in sectors of 512 bytes, for any block size."""
        return self.disk.size // SECTOR

    @blk_size.read
    def read_block_size(self) -> int:
        """The size of a logical block in bytes, from the option."""
        return self.block_size

    @num_request_queues.read
    def read_queues(self) -> int:
        """The number of request queues, from the option."""
        return self.queues

    @writeback.read
    def read_writeback(self) -> int:
        """The cache mode: 1 if writes may stay in the cache until a flush (§5.2.5)."""
        return int(not self.durable)

    @property
    def durable(self) -> bool:
        """Whether a write completes only when it is on the medium. Always true for a driver without FLUSH."""
        chosen = self.negotiated
        if Blk.FLUSH not in chosen:
            return True
        return Blk.CONFIG_WCE in chosen and not VirtioBlk.writeback.load(self.storage(VirtioBlk.mmio))

    @size.set
    def resize(self, size: int = 0) -> None:
        """Change the size of the disk while the guest runs. 0 takes over the present size of the image."""
        self.disk.check_resize(size, block=self.block_size, shrink=self.shrink)
        self.workers.finish()  # a write in progress must not make a shrunken file longer again
        self.disk.resize(size, block=self.block_size, shrink=self.shrink)
        if self.shrink:
            self.change("shrink", False)  # the permission is for one change
        self.configuration_changed()

    @shrink.set
    def allow_shrinking(self, shrink: bool) -> None:
        """Accept the option. It has an effect only on the next change of the size."""

    # -- requests (§5.2.6)

    def notified(self, queue: Virtqueue) -> None:
        """Do requests that need no waiting at once, up to AT_ONCE bytes, and give the others to threads."""
        self.budget, self.told = AT_ONCE, AT_ONCE - ENOUGH
        try:
            for chains in queue.batches(self.fast):
                if chains:
                    self.work(queue, chains)
                if self.budget <= 0:
                    queue.ask_for_turn()
                    break
        finally:
            for writes in self.writes:
                self.workers.submit(writes)
            self.writes.clear()

    def work(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Do or begin the requests in these buffers. Those that the budget does not allow are put back.

        A GuestError for a buffer that is no request, once those before it are done or begun.
        """
        begun, ended, budget, moved = perf_counter_ns(), 0, self.budget, self.moved
        written, others = moved[3], 0
        done: list[Chain] = []
        writes: list[Job] = []
        wrong: GuestError | None = None
        for number, chain in enumerate(chains):
            if self.budget <= 0:  # another turn of the loop costs less than a thread
                queue.back(chains[number:])
                break
            try:
                request = Request(chain)
            except GuestError as error:
                wrong = error
                break
            try:
                if request.type == IN:
                    job = self.read(request)
                else:
                    job = self.begin(request)
                    others += job is None
            except (Failure, OSError) as error:
                others += 1
                done.append(request.end(self.blame(error)))
                continue
            if job is None:
                done.append(request.end(OK))
                if self.budget <= self.told:  # the driver handles these while the next data is copied
                    self.told -= ENOUGH
                    queue.finish(done)
                    queue.flush()
                    ended += len(done)
                    done = []
            else:
                job.tag = request
                request.begun = begun
                if isinstance(job, Transfer) and job.write:
                    writes.append(job)
                else:
                    self.workers.submit(job)
        queue.finish(done)
        ended += len(done)
        if ended:
            moved[0] += ended - others  # the rest are reads
            moved[1] += budget - self.budget - (moved[3] - written)
            self.meter.took(perf_counter_ns() - begun, ended)
        for first in range(0, len(writes), TOGETHER):
            self.workers.submit(*writes[first : first + TOGETHER])
        if wrong:
            raise wrong

    def finished(self, jobs: list[Job]) -> None:
        """Complete the requests that threads have done, with one interrupt for each queue."""
        now, took = perf_counter_ns(), self.meter.took
        queues: dict[int, Virtqueue] = {}
        for job in jobs:
            if isinstance(job, Writes):
                queue = job.queue
                took(now - job.begun, len(job.rows))
                job.end(self)
            else:
                request: Request = job.tag
                queue = request.chain.queue
                took(now - request.begun)
                queue.finish([request.end(OK if job.error is None else self.blame(job.error))])
            queues[queue.index] = queue
        for queue in queues.values():
            queue.flush()

    def blame(self, error: Exception) -> Result:
        """The status for an error. Why the image has failed is logged: the driver gets only an I/O error."""
        if isinstance(error, Failure):
            return error.result
        if isinstance(error, OSError):
            self.warn("disk: %s", error)
            self.kept.note_losses()
        else:
            self.log.error("request failed", exc_info=error)
        return Result.IO_ERROR

    def begin(self, request: Request) -> Job | None:
        """Start a request that is no read. Returns a job for a thread, or None if it is done.

        May raise a Failure or an OSError.
        """
        match request.type:
            case Type.OUT:
                return self.write(request)
            case Type.FLUSH:
                return None if self.disk.instant else Job(self.disk.flush)
            case Type.GET_ID:
                request.put(self.serial.encode().ljust(ID_SIZE, b"\0"))
                return None
            case Type.DISCARD:
                self.check_writable()
                return Job(discard, self.disk, spans(request, self.disk.size, MOST_SECTORS))
            case Type.WRITE_ZEROES:
                self.check_writable()
                return Job(write_zeroes, self.disk, spans(request, self.disk.size, MOST_SECTORS), self.durable)
            case _:
                raise Failure(Result.UNSUPPORTED)

    def read(self, request: Request) -> Job | None:
        """Read at once if the data is in memory. Else return a job: a thread waits for the disk."""
        disk, offset, length = self.disk, request.sector * SECTOR, request.chain.room - 1
        if length % SECTOR or offset + length > disk.size:
            raise Failure(Result.IO_ERROR)
        if length <= AT_ONCE and disk.try_read(request.room, offset, length):
            self.budget -= length
            return None
        self.moved[0] += 1
        self.moved[1] += length
        return Transfer(disk, request.room, offset, write=False)

    def write(self, request: Request) -> Job | None:
        """Write at once if the disk is memory. Else return a job."""
        self.check_writable()
        disk, offset, length = self.disk, request.sector * SECTOR, request.data_size
        if length % SECTOR or offset + length > disk.size:
            raise Failure(Result.IO_ERROR)
        moved = self.moved
        moved[2] += 1
        if disk.instant and length <= AT_ONCE:
            self.budget -= length
            moved[3] += length
            disk.write(request.data, offset)
            return None
        moved[4] += length
        if not self.durable:
            return Transfer(disk, request.data, offset, write=True)
        return Job(self.store, request.data, offset)

    def store(self, views: list[memoryview], offset: int) -> None:
        """Write onto the medium. Runs on a thread."""
        self.disk.write(views, offset, durable=True)

    def check_writable(self) -> None:
        """Refuse a write to a read-only disk (§5.2.6.2)."""
        if self.readonly:
            raise Failure(Result.IO_ERROR)
