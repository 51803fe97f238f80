"""A device joined to one client: the session's backend on one side, the device's host on the other."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from bellwire.device import PciDevice
from bellwire.errors import GuestError
from bellwire.model.core import Core
from bellwire.model.jobs import Done
from bellwire.model.labels import Labels
from bellwire.model.limited import shape
from bellwire.serve.bells import Bells
from bellwire.serve.blame import in_words
from bellwire.serve.loop import Deadline, Loop
from bellwire.serve.observer import Observer
from bellwire.serve.threads import Threads
from vfio_user import (
    Command,
    DeviceFlags,
    DmaFault,
    IrqFlags,
    IrqIndex,
    IrqInfo,
    Mechanism,
    MmapArea,
    Reader,
    Region,
    RegionFlags,
    RegionInfo,
    Segment,
    Session,
    SharedMap,
    SubRegion,
    VfioUserError,
)

_UCRED = struct.Struct("3i")
DRAIN = 8192  # messages in a turn: more than a socket holds, so a ring never waits for ever behind a flood


class Served:
    """One device and, while there is one, its client."""

    device_flags = DeviceFlags.RESET | DeviceFlags.PCI

    def __init__(self, device: PciDevice, loop: Loop, observer: Observer | None = None) -> None:
        self.core: Core = device.core
        self.core.host = self
        self.core.log.tell = (observer or Observer()).trouble
        self._observer = observer or Observer()
        self._introduced = False
        self._labels = Labels(self.core.layout)
        self.session: Session | None = None
        self._loop = loop
        self._bells: Bells | None = None
        self._session_fd = self._bells_fd = -1
        self._alone: list[tuple[int, int]] = []

    # -- a client comes and goes

    def attach(self, connection: socket.socket, io_fd_entry_size: int = 40) -> None:
        """Serve the client at the far end of ``connection``; the session owns it from now on."""
        self.session = Session(connection, self, io_fd_entry_size=io_fd_entry_size)
        self._bells = Bells(self.core, self.guard)
        self._introduced = False
        self.core.tally.clients += 1
        self.core.join(True)
        self._observer.connected(*_credentials(connection))
        self._session_fd, self._bells_fd = self.session.fileno(), self._bells.fileno()
        self._alone = [(self._session_fd, int(select.EPOLLIN))]
        self._loop.watch(self._session_fd, _nothing)
        self._loop.watch(self._bells_fd, _nothing)
        self.core.signals.relevel()
        self.core.signals.resend()

    def detach(self, reason: str = "the device is being stopped") -> None:
        """Let the client go: its memory, its eventfds and our doorbells' fds; the device's state stays."""
        if self.session is None or self._bells is None:
            return
        self._bells.gather()
        self._bells.run()
        self.core.finish_jobs()
        self._loop.unwatch(self._bells.fileno())
        self._loop.unwatch(self.session.fileno())
        self._bells.close()
        self.session.settle()
        self.session.close()
        self.session = self._bells = None
        self.core.join(False)
        self._observer.left(reason)

    def wait(self) -> list[int]:
        """Sleep until there is something to do: the descriptors that can be read.

        Reads of registers that run no device code are answered meanwhile, if nothing else is going on. Raises what
        :meth:`turn` raises.
        """
        session, bells, loop = self.session, self._bells, self._loop
        if session is None or bells is None:
            return loop.wait()
        if session.waiting:  # a DMA message's wait may have taken commands off the socket
            return loop.wait(0)
        if not loop.calm:
            return loop.wait()
        ready = session.wait(loop.poll, self._alone, bells.poll)
        return [fd for fd, _ in ready]

    def turn(self, ready: Container[int]) -> None:
        """Handle what the client has sent and rung; ``ready`` are the descriptors that have something to read.

        Rings are taken out of their fds first and acted upon last, with the socket drained in between: so a ring
        sees every write that was posted before it. Raises what :meth:`vfio_user.Session.service` raises when the
        client is gone.
        """
        session, bells = self.session, self._bells
        if session is None or bells is None:
            return
        if self._bells_fd in ready and bells.gather():
            if self._session_fd in ready or session.look():
                session.service(DRAIN)
            bells.run()
        elif self._session_fd in ready or session.waiting:
            session.service(DRAIN, probe=False)
        if not self._introduced and session.client is not None:
            self._introduced = True
            self._observer.introduced(session.client)

    def statistics(self) -> dict[str, int]:
        """What has happened so far, and what the client has set up now."""
        session = self.session
        if session is not None:
            session.settle()
        numbers = self.core.tally.to_dict() | self.core.device.dma.counts
        return numbers | {"dma_maps": len(session.dma) if session else 0, "connected": int(session is not None)}

    def guard(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call into device code; what it raises is logged, and None comes back."""
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 the boundary to device code: nothing of it may end us
            self._log_failure(getattr(function, "__name__", "device code"), error)
            return None

    # -- vfio_user.Backend

    def region(self, index: int) -> Region:
        """Size, rights and mmap-able areas of a region."""
        size = self.core.region_size(index)
        if size == 0:
            return Region(RegionInfo(index, RegionFlags(0), 0), None)
        flags = RegionFlags.READ | RegionFlags.WRITE
        plan = self.core.layout.bars.get(index)
        areas = tuple(MmapArea(area.offset, area.size) for area in plan.areas) if plan else ()
        if areas:
            flags |= RegionFlags.MMAP
        return Region(RegionInfo(index, flags, size, 0, areas), self.core.state.area_fds.get(index))

    def irq(self, index: int) -> IrqInfo:
        """How many interrupts of a kind there are."""
        layout = self.core.layout
        count, flags = 0, IrqFlags.EVENTFD
        if index == IrqIndex.INTX and layout.intx:
            count, flags = 1, IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED
        elif index == IrqIndex.MSI and layout.msi:
            count = layout.msi.count
        elif index == IrqIndex.MSIX and layout.msix:
            count = layout.msix.count
        elif index in (IrqIndex.ERR, IrqIndex.REQ):
            count = 1
        return IrqInfo(index, count, flags)

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """Guest reads."""
        return self.core.reader(index, offset, count)

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        """Guest write."""
        self.core.write(index, offset, data)

    def accessed(self, index: int, offset: int, count: int, *, write: bool, times: int) -> None:
        """Count them where they belong."""
        tally = self.core.tally
        if write:
            tally.writes += times
        else:
            tally.reads += times
        for name in self._labels.at(index, offset, count):
            tally.accesses[write][name] += times

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> Sequence[SubRegion]:
        """Doorbells and stretches that the client may register with KVM."""
        return self._bells.sub_regions(index, mechanisms) if self._bells else ()

    def reset(self) -> None:
        """DEVICE_RESET: rings from before it are void."""
        if self._bells is not None:
            self._bells.discard()
        self.core.reset()

    def before_reply(self) -> None:
        """A reply flushes rings: the client may rely on what it rang before it asked."""
        bells = self._bells
        if bells is not None and bells.gather():
            bells.run()

    def before_unmap(self) -> None:
        """Jobs that are under way may use the memory: what they write to a disk must not be zeros of ours."""
        self.core.finish_jobs()

    def dma_changed(self) -> None:
        """The client has mapped or unmapped memory."""
        self.core.dma.changed()
        if self.session is not None:
            table = self.session.dma
            self._observer.mapped(len(table), table.total)

    def irqs_changed(self, index: int) -> None:
        """The client has set, masked or unmasked interrupts."""
        if index == IrqIndex.MSIX:
            self.core.signals.taken()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Session's own fds (INTx resample) on the loop."""
        self._loop.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        """Take one off."""
        self._loop.unwatch(fd)

    def refused(self, error: VfioUserError) -> None:
        """The client sent something that it should not have."""
        self.core.log.warning(("refused", shape(error)), "refused: %s", error)

    def hook_failed(self, command: Command, error: BaseException) -> None:
        """Device code raised while a message was handled; the client has been told so by errno."""
        self._log_failure(command.name, error)

    # -- bellwire.model.host.Host

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """Guest memory as the client has mapped it."""
        if self.session is None:
            raise DmaFault(address, size, "no client is connected")
        return self.session.dma.segments(address, size, write)

    @property
    def by_message(self) -> bool:
        """Whether the client has mapped memory without sharing any."""
        return self.session is not None and self.session.dma.by_message

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """Maps of the client's, side by side."""
        if self.session is None:
            raise DmaFault(address, size, "no client is connected")
        return self.session.dma.whole(address, size, write)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """A whole map of the client's."""
        return None if self.session is None else self.session.dma.shared_map(address, write)

    def dma_read(self, address: int, size: int) -> bytes:
        """DMA_READ."""
        assert self.session is not None  # segments() has been asked first
        return self.session.dma_read(address, size)

    def dma_write(self, address: int, data: memoryview) -> None:
        """DMA_WRITE."""
        assert self.session is not None
        self.session.dma_write(address, data)

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Write the client's eventfd."""
        return self.session is not None and self.session.irqs.trigger(index, vector)

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """Whether the session still holds it back."""
        return self.session is None or self.session.irqs.pending(index, vector)

    def level(self, asserted: bool) -> None:
        """The INTx line."""
        if self.session is not None:
            self.session.irqs.set_level(asserted)

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
        """A timer whose failure is logged."""
        return self._loop.after(delay, lambda: self.guard(callback))

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Device code's own descriptors on the loop; a failure is logged."""
        self._loop.watch(fd, lambda: self.guard(callback))

    def unwatch_fd(self, fd: int) -> None:
        """Take one off."""
        self._loop.unwatch(fd)

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Work on a thread; its failure is logged."""

        def finished(future: Future[Any]) -> None:
            try:
                result = future.result()
            except CancelledError:
                return
            except (Exception, SystemExit) as error:  # noqa: BLE001 as in guard()
                self._log_failure("background work", error)
                return
            self.guard(done, result)

        self._loop.background(work, finished)

    def pool(self, threads: int, done: Done) -> Threads:
        """Real threads."""
        return Threads(self._loop, threads, lambda jobs: self.guard(done, jobs))

    def _log_failure(self, what: str, error: BaseException) -> None:
        log = self.core.log
        if isinstance(error, GuestError):
            self.core.tally.guest_errors += 1
            log.warning(("guest", shape(error)), "%s", in_words(error, what))
        else:
            self.core.tally.failures += 1
            log.failure(_place(error), error, "%s", in_words(error, what))
        self._observer.failed(error)


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """The peer's process and user (unix(7), SO_PEERCRED)."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _place(error: BaseException) -> tuple[object, ...]:
    """Where it was raised: each place has its traceback logged once."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace and (trace.tb_frame.f_code, trace.tb_lineno)


def _nothing() -> None:
    """The session and the doorbells have their own place in the turn; here they only end the wait."""
