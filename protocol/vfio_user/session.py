"""The server's side of one connection: it takes commands, and answers them for a backend."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable

from vfio_user.accesses import CheckedAccess, CheckedAccesses, refusal, short
from vfio_user.backend import Backend, Late
from vfio_user.begun import ACCESSES, BEGUN, begun, died, lacks_fds, prepare
from vfio_user.channel import HEADER, Channel
from vfio_user.constants import HEADER_SIZE, IO_FDS, PCI_IRQS, Command, MessageFlags
from vfio_user.device_code import DeviceCode, HookFailedError
from vfio_user.dialects import RATIFIED, Dialect
from vfio_user.dirty_pages import DirtyPages
from vfio_user.dma import DmaTable
from vfio_user.dma_commands import answer_map, answer_unmap
from vfio_user.dma_requests import DmaRequests
from vfio_user.draft_dirty import answer_dirty_pages
from vfio_user.errors import Disconnected, FramingError, ProtocolError, VfioUserError
from vfio_user.feature_answers import FeatureAnswers
from vfio_user.getters import DONE, Getters, Reply
from vfio_user.irq_commands import answer_set_irqs
from vfio_user.irqs import IrqTable
from vfio_user.journal import BUSY, HEAD, Journal
from vfio_user.late_replies import LateReplies
from vfio_user.ledger import Estate, Kept, Ledger
from vfio_user.loan import Ready
from vfio_user.many_writes import write_many
from vfio_user.message import Message, close_fds
from vfio_user.movable import Movable
from vfio_user.plain_reads import answer_plain_reads
from vfio_user.server_migration import ServerMigration
from vfio_user.server_twin import ServerTwin
from vfio_user.tap import Tap, tapped
from vfio_user.transfer import REGION_ACCESS
from vfio_user.version import Capabilities
from vfio_user.vm_interrupts import sender

SERVER = Capabilities(max_msg_fds=16, write_multiple=True, twin_socket=True, io_fds=frozenset(IO_FDS))
"""What a session can take. QEMU uses at most 16 fds."""
# Plain ints: the operators of IntFlag cost more than a system call.
_REPLY, _NO_REPLY = int(MessageFlags.REPLY), int(MessageFlags.NO_REPLY)
_ALL_REPLY_FLAGS = _REPLY | int(MessageFlags.ERROR)
_ACCESSES = frozenset((int(Command.REGION_READ), int(Command.REGION_WRITE)))


class Session:
    """Serves ``backend`` to the client behind ``sock``, which the session owns. It never waits for commands.

    ``client`` has the capabilities that the client sent in VERSION; None before that. ``dma`` and ``irqs`` are what it
    has set up; ``dma_requests`` asks it for DMA. ``timeout`` is in seconds: how long a send, or a DMA message, waits.
    ``ledger`` is told of all that a successor needs. ``movable`` is the device as it migrates; without one it cannot.
    """

    def __init__(
        self,
        sock: socket.socket,
        backend: Backend,
        *,
        limits: Capabilities = SERVER,
        dialect: Dialect = RATIFIED,
        timeout: float = 5.0,
        ledger: Ledger | None = None,
        journal: Journal | None = None,
        movable: Movable | None = None,
        channel: type[Channel] = Channel,
    ) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self.client: Capabilities | None = None
        self.dma = DmaTable(limits.max_dma_maps, limits.pgsizes, ledger)
        self._backend = backend
        self._limits = dialect.within(limits)
        self._dialect = dialect
        self._channel = channel(sock, limits.max_data_xfer_size, timeout, journal)
        self._journal = journal
        self._orphans = 0  # stream position up to which another process has received, and descriptors may be lost
        self._socket = select.poll()
        self._socket.register(sock, select.POLLIN)
        self.dma_requests = DmaRequests(self._channel, timeout, self._handle, dialect.dma)
        self._twin = ServerTwin(self.dma_requests, self._limits, timeout, self._ledger, journal=journal is not None)
        code = DeviceCode(backend)
        self._call, self._failed = code.call, code.failed
        late, flags = (journal.late, journal.irqs) if journal else (None, None)
        self._late = LateReplies(self._channel, self._refuse, self._failed, late)
        self._accesses = CheckedAccesses(backend, limits.max_data_xfer_size)
        self._getters = Getters(backend, self._accesses.regions, dialect.entry, dialect.entries)
        counts = [backend.irq(index).count for index in range(PCI_IRQS)]
        by_message = sender(dialect, lambda: self._channel if self.client else None)
        self.irqs = IrqTable(counts, backend.watch, backend.unwatch, ledger, by_message, flags)
        self.migration = ServerMigration(movable, self._ledger)
        self.dirty = DirtyPages(self.dma, backend.settle, self._ledger)
        answers = FeatureAnswers(self.migration, self.dirty, self._accesses.regions, self._most)
        handlers: dict[Command, Callable[[Message], Reply]] = {
            Command.REGION_WRITE_MULTI: self._write_multi,
            Command.DMA_MAP: lambda message: answer_map(message, self.dma, backend),
            Command.DMA_UNMAP: lambda message: answer_unmap(message, self.dma, backend),
            Command.DEVICE_GET_INFO: self._getters.device_info,
            Command.DEVICE_GET_REGION_INFO: self._getters.region_info,
            Command.DEVICE_GET_REGION_IO_FDS: lambda message: self._getters.io_fds(message, self._call),
            Command.DEVICE_GET_IRQ_INFO: self._getters.irq_info,
            Command.DEVICE_SET_IRQS: lambda message: answer_set_irqs(message, self.irqs, backend),
            Command.DEVICE_RESET: self._reset,
            Command.DEVICE_FEATURE: lambda message: self._call(Command.DEVICE_FEATURE, answers.feature, message),
            Command.MIG_DATA_READ: answers.read,
            Command.MIG_DATA_WRITE: answers.write,
        }
        self._handlers = dialect.numbered(handlers)
        if dialect.dirty_pages is not None:
            self._handlers[dialect.dirty_pages] = lambda message: answer_dirty_pages(message, self.dirty)
        self._reset_number = int(dialect.reset)

    def take_over(self, estate: Estate) -> None:
        """Go on where the session of another process has ended, which had a ledger. Nothing is sent."""
        if "version" in estate:
            self.client = Capabilities.from_json(estate.note("version"))
            self._getters.agree(self.client, self._limits)
        self._twin.take_over(estate)
        self.dma.take_over(estate)
        self.irqs.take_over(estate)
        self.dirty.take_over(estate)
        self.migration.inherited(estate)

    def finish(self, estate: Estate, *, again: bool) -> None:
        """Finish the one command that the process before had begun, if it had. Call it after :meth:`take_over`.

        An access is done ``again``, or answered with an error. Other commands are done again: that is harmless.
        """
        message, self._orphans = begun(self._journal, self._channel, estate)
        self._late.left(lambda read: self._finish(read, again=again), message)
        if message is not None:
            prepare(message, self, self._backend)
            self._finish(message, again=again)

    def _finish(self, message: Message, *, again: bool) -> None:
        if again or message.command not in ACCESSES - self._dialect.missing:
            self._handle(message)
        else:
            close_fds(message.fds)
            self._refuse(message.id, message.command, died(message), not message.flags & _NO_REPLY)

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop; it stays owned by this object."""
        return self._channel.fileno()

    def regions_changed(self) -> None:
        """Ask the backend for its regions again: one has another size now."""
        self._accesses.look()

    def tap(self, tap: Tap | None) -> None:
        """Show each message from now on to ``tap``, or to nobody. Not for calls from within :meth:`service`."""
        self._channel = self._late.channel = tapped(self._channel, tap)
        if not self.dma_requests.twin:
            self.dma_requests.channel = self._channel
        self._twin.tap(tap)

    def settle(self) -> None:
        """Report the client's accesses since the last report to the backend (:meth:`Backend.accessed`)."""
        self._accesses.settle()

    @property
    def waiting(self) -> bool:
        """Whether a received command waits for :meth:`service`. A poll of the socket may not show it."""
        channel = self._channel
        return (not channel.empty and channel.ready) or bool(self.dma_requests.kept)

    def look(self) -> bool:
        """Whether a command has arrived, in the buffer or the socket. A receive in vain costs four times as much."""
        return self.waiting or bool(self._socket.poll(0))

    def wait(self, sleeper: Callable[[], Callable[[], Ready]], alone: Ready, rung: Callable[[int], object]) -> Ready:
        """Wait, by what ``sleeper`` gives, until there is more to do than what :mod:`vfio_user.plain_reads` does.

        Returns what the last wait returned; nothing, if device code has received other commands meanwhile.
        """
        ready, do = sleeper()(), self._perform
        return answer_plain_reads(self._channel, self._accesses, sleeper, alone, rung, do) if ready == alone else ready

    def service(self, budget: int = 64, *, probe: bool = True) -> bool:
        """Handle the commands that have arrived, at most ``budget``. Returns True if there may be more.

        Without ``probe``, it stops after a receive that seems to have emptied the socket. A caller that polls the
        socket finds out about more.

        Raises Disconnected when the client has left, and FramingError or TimedOut when the connection cannot go on. The
        caller then closes the session.
        """
        dma_requests, channel, known = self.dma_requests, self._channel, self._accesses.known
        for _ in range(budget):
            if dma_requests.kept:
                self._handle(dma_requests.pop())
            else:
                found = channel.recall(known)
                if found is not None:
                    self._perform(*found)
                elif channel.empty or not self._next():
                    return False
            if not probe and channel.drained and channel.empty and not dma_requests.kept:
                return False
        return True

    def dma_read(self, address: int, count: int) -> bytes:
        """Read ``count`` bytes of one map: by file I/O, if the client asked for that, else by DMA_READ.

        Commands that arrive during a DMA_READ are kept for later. Raises DmaFault, and Stalemate if the client must
        have a reply first (see :class:`~vfio_user.dma_requests.DmaRequests`).
        """
        file_io = self.dma.file_io(address)
        if file_io is not None:
            return file_io.read(address, count)
        return self.dma_requests.read(address, count, self._most())

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        """Write guest memory of one map; otherwise as :meth:`dma_read`."""
        octets = memoryview(data).cast("B")
        self.dirty.wrote(address, len(octets))
        if (file_io := self.dma.file_io(address)) is not None:
            file_io.write(address, octets)
        else:
            self.dma_requests.write(address, octets, self._most())

    def close(self) -> None:
        """Release the client's memory, its eventfds and the socket, without a call to the backend."""
        self._late.close()
        self.dirty.close()
        self.dma.clear()
        self.irqs.clear()
        self.dma_requests.close()
        self._channel.close()
        self._twin.close()
        if self._journal is not None:
            self._journal.close()

    # -- one command

    def _perform(self, message_id: bytes, access: CheckedAccess, data: memoryview, flushed: bool = False) -> bool:
        """Do an access, after the rings unless ``flushed``, and answer it. Returns whether no command was kept."""
        reply, writer, dma_requests, channel = access.reply, access.writer, self.dma_requests, self._channel
        marks, end = channel.marks, channel.start
        access.times += 1
        before = dma_requests.answering
        try:
            if reply:
                dma_requests.answering = access.command
                if not flushed and not dma_requests.outstanding:  # else a hook that waits for its DMA has not ended
                    self._backend.before_reply()
            marks[BUSY] = end
            try:
                if writer is not None:
                    writer(data)
                    found: bytes | memoryview = b""
                else:
                    found = access.reader()
                    if len(found) != access.count:
                        raise short(len(found), access.count)
            except VfioUserError:
                raise
            except Late as late:
                self._late.expect(late, message_id, access)
                reply = b""  # none now
            except (Exception, SystemExit) as error:  # noqa: BLE001 as in _call()
                raise self._failed(access.command, error) from None
        except VfioUserError as error:
            self._refuse(int.from_bytes(message_id, "little"), access.command, error, bool(reply))
        else:
            if reply:
                channel.send_whole(message_id + reply + found)
            else:
                marks[HEAD] = end
        finally:
            dma_requests.answering = before
        return not dma_requests.kept

    def _next(self) -> bool:
        """Handle the next message. Returns whether there was one."""
        try:
            message = self._channel.receive()
        except FramingError as error:
            if error.answer_to is not None:
                self._channel.send(*error.answer_to, _ALL_REPLY_FLAGS, errno.EINVAL)
            raise
        if message is not None:
            self._handle(message)
        return message is not None

    def _handle(self, message: Message) -> None:
        """Handle a message, and close the descriptors that nobody has taken."""
        kept = bool(message.fds) and type(self._ledger) is not Ledger
        if kept:
            self._ledger.keep(Kept(BEGUN, {"id": message.id, "command": message.command}, tuple(message.fds)))
        try:
            if message.command in _ACCESSES and message.flags & 0xF != _REPLY:
                self._access(message)
            else:
                self._act(message)
        finally:
            if message.fds:
                close_fds(message.fds)
            if kept:
                self._ledger.drop(BEGUN)

    def _access(self, message: Message) -> None:
        """Check a read or a write that is not known yet, and do it."""
        try:
            self._admit(message)
            access = self._accesses.checked(message)
        except VfioUserError as error:
            access = refusal(message, error)
        self._perform(message.id.to_bytes(2, "little"), access, message.payload[REGION_ACCESS.size :])

    def _act(self, message: Message) -> None:
        flags = message.flags
        if flags & 0xF == _REPLY:
            self._channel.done()
            return  # a late reply to a DMA message that was given up
        if flags & _NO_REPLY:
            self._answer_or_refuse(message, wants_reply=False)
            return
        dma_requests = self.dma_requests
        before, dma_requests.answering = dma_requests.answering, message.command
        try:
            if message.command != self._reset_number and not dma_requests.outstanding:
                self._backend.before_reply()  # a reset discards rings, and a hook that waits for its DMA has not ended
            self._answer_or_refuse(message, wants_reply=True)
        finally:
            dma_requests.answering = before

    def _answer_or_refuse(self, message: Message, *, wants_reply: bool) -> None:
        channel = self._channel
        channel.marks[BUSY] = channel.start
        try:
            reply = self._answer(message)
        except VfioUserError as error:
            self._refuse(message.id, message.command, error, wants_reply)
            return
        if not wants_reply:
            channel.done()
        elif reply is DONE:
            channel.send_whole(HEADER.pack(message.id, message.command, HEADER_SIZE, _REPLY, 0))
        else:
            try:
                channel.send(message.id, message.command, _REPLY, 0, reply.parts, reply.fds)
            finally:
                close_fds(list(reply.given))

    def _refuse(self, message_id: int, command: int, error: VfioUserError, wants_reply: bool) -> None:
        """Report a refusal: the errno to the client, the error to the backend. Raises it if the connection must end."""
        if not wants_reply:
            self._channel.done()
        else:
            self._channel.send(message_id, command, _ALL_REPLY_FLAGS, error.errno)
        if isinstance(error, FramingError):
            raise error
        if not isinstance(error, HookFailedError):
            self._backend.refused(error)

    def _answer(self, message: Message) -> Reply:
        if message.command == Command.VERSION and self.client is None and not message.flags & 0xF:
            return self._version(message)
        self._admit(message)
        if self._channel.position <= self._orphans and lacks_fds(message):
            raise died(message)
        handler = self._handlers.get(message.command)
        if handler is None:
            name = self._dialect.called(message.command)
            raise ProtocolError(f"{name}: not a command that a client can send, or not at this time")
        return handler(message)

    def _admit(self, message: Message) -> None:
        """Raise ProtocolError for a command that is not allowed, whatever it asks for."""
        if message.flags & 0xF:
            raise ProtocolError(f"{message.name}: flags {message.flags:#x} are of no known message type")
        if self.client is None:
            raise ProtocolError(f"{message.name}: VERSION must come first")
        if len(message.fds) > self._limits.max_msg_fds:
            raise ProtocolError(f"{message.name}: {len(message.fds)} fds, max_msg_fds is {self._limits.max_msg_fds}")

    def _version(self, message: Message) -> Reply:
        asked, answer = self._getters.version(message, self._limits)
        given = [self._twin.open()] if answer.capabilities.twin_socket else []
        self._ledger.keep(Kept("version", asked.to_json()))
        self.client = asked
        return Reply([answer.pack()], given, given)

    def _write_multi(self, message: Message) -> Reply:
        if not (self.client and self.client.write_multiple and self._limits.write_multiple):
            raise ProtocolError("REGION_WRITE_MULTI: write_multiple was not negotiated")
        return write_many(message, self._accesses, self._call, self._refuse)

    def _reset(self, _message: Message) -> Reply:
        self._call(Command.DEVICE_RESET, self.migration.reset, self._backend.reset)
        return DONE

    def _most(self) -> int:
        """The most bytes that a DMA message may move."""
        if self.client is None:
            raise Disconnected("no client has introduced itself yet")
        return min(self.client.max_data_xfer_size, self._limits.max_data_xfer_size)
