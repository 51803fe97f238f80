"""The controller and its state machine: start, stop, shutdown and fatal failure (§3.1, §7.3, §7.6)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from bellwire import GuestError, Job, StateError
from bellwire.bundled.nvme import registers
from bellwire.bundled.nvme.engine import Engine
from bellwire.bundled.nvme.events import Event, Events, EventState
from bellwire.bundled.nvme.features import NAMESPACE_NOTICES, TELEMETRY_NOTICES, FeatureId, Features
from bellwire.bundled.nvme.format import Format
from bellwire.bundled.nvme.guest_pages import GuestPages
from bellwire.bundled.nvme.history import CONTROLLER_FATAL, Happening, History, reset_event
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.io import flush_all
from bellwire.bundled.nvme.journal import Journal
from bellwire.bundled.nvme.keeper import Keeper
from bellwire.bundled.nvme.logs import Counters, LogPage, Logs
from bellwire.bundled.nvme.management import Management
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.queue_set import QueueSet
from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue, place_batches, queues_in
from bellwire.bundled.nvme.registers import ControllerConfiguration, Registers
from bellwire.bundled.nvme.sanitize import Sanitize
from bellwire.bundled.nvme.self_test import SelfTest
from bellwire.bundled.nvme.shadow import Shadow, ShadowState
from bellwire.bundled.nvme.store import Store
from bellwire.bundled.nvme.telemetry import Telemetry, describe
from bellwire.bundled.nvme.timestamp import Timestamp, TimestampState

_STATUS = Registers.csts.offset


class StateViews(NamedTuple):
    """The parts of the device's state in which the controller keeps its own state."""

    submissions: memoryview
    completions: memoryview
    features: memoryview
    counters: memoryview
    errors: memoryview
    events: memoryview
    shadow: memoryview
    journal: memoryview
    timestamp: memoryview
    batches: memoryview


class Manner(NamedTuple):
    """Options of the controller: the limit of I/O queue pairs, and how disks are opened."""

    queues: int
    read_only: bool
    direct: bool


class Controller:
    """The controller. It joins the parts: ``device`` has the registers, ``store`` keeps what outlives the device."""

    def __init__(
        self,
        device: Registers,
        state: StateViews,
        namespaces: Namespaces,
        identity: ControllerIdentity,
        store: Store,
        manner: Manner,
    ) -> None:
        self.device = device
        self.namespaces = namespaces
        self.identity = identity
        self.store = store
        self.keeper = Keeper(self)
        self.read_only = manner.read_only
        self.direct = manner.direct
        self.features = Features(state.features.cast("I"), manner.queues, namespaces.most)
        self.logs = Logs(Counters.from_buffer(state.counters), state.errors, self.features)
        self.events = Events(EventState.from_buffer(state.events))
        self.pages = GuestPages(device.dma)
        self.timestamp = Timestamp(TimestampState.from_buffer(state.timestamp), device.clock)
        self.history = History(store.record, identity, lambda: self.timestamp.now, self.save_soon)
        self.telemetry = Telemetry(store.record, lambda: describe(self))
        submissions = queues_in(state.submissions, SubmissionQueue)
        place_batches(submissions, state.batches)
        self.queues = QueueSet(
            device,
            submissions,
            queues_in(state.completions, CompletionQueue),
            Shadow(ShadowState.from_buffer(state.shadow), device.dma),
            self.features,
            manner.queues,
            self.happened,
        )
        self.self_test = SelfTest(self)
        self.sanitize = Sanitize(self)
        self.format = Format(self)
        self.management = Management(self)
        self.journal = Journal(state.journal)
        self.engine = Engine(self, self.journal)
        self._file = device.storage(Registers.mmio)
        self._shutdown: Job | None = None
        self._powered = False
        self.logs.pages |= {
            LogPage.CHANGED_NAMESPACES: self.events.changed_page,
            LogPage.SELF_TEST: self.self_test.page,
            LogPage.HOST_TELEMETRY: self.telemetry.host_page,
            LogPage.CONTROLLER_TELEMETRY: self.telemetry.controller_page,
            LogPage.PERSISTENT_EVENTS: self.history.page,
            LogPage.SANITIZE: self.sanitize.page,
        }

    @property
    def live(self) -> bool:
        """Whether the controller executes commands: it is ready, is not stopping, and has not failed.

        Every turn asks for it, so it looks at the lowest byte of the register directly.
        """
        status = self._file[_STATUS]
        return status & (registers.READY | registers.FATAL) == registers.READY and self.queues.admin.size != 0

    def configure(self, before: int, now: int) -> None:
        """The host has changed CC from ``before`` to ``now`` (§3.1.5)."""
        old, new = ControllerConfiguration(before), ControllerConfiguration(now)
        if new.enable and not old.enable:
            if not self.device.csts & registers.READY:  # else it is still stopping: ended() starts it afterwards
                self._start(new)
        elif old.enable and not new.enable:
            self._stop()
        if new.shutdown and new.shutdown != old.shutdown:
            self._shut_down()

    def power_on(self) -> None:
        """Start again after a reset of the whole device. Its state is zero, and no thread works for it."""
        self._forget()
        self.engine.clear()
        self.features.reset()
        self.timestamp.power_on()
        record = self.store.record
        if not self._powered:
            self._powered = True
            record.power_cycles += 1
            self.logs.power_cycles = record.power_cycles
            self.history.add(Happening.HEALTH, self.logs.health_page())
        self.history.add(Happening.RESET, reset_event(record.power_cycles, self.timestamp.now))
        self._go_on()

    def _go_on(self) -> None:
        """Start background operations again: the threads have dropped their jobs."""
        self.keeper.forgotten()
        self.namespaces.hold(self.namespaces.allocated, None)
        self.sanitize.resume()
        self.self_test.resume()
        self.save_soon()

    def check_state(self) -> None:
        """Raise a StateError if the restored state of queues, events or commands under way cannot be one."""
        entries = self.journal.entries() if self.live else ()  # threads finish the commands of queues that have ended
        if wrong := self.queues.impossible(entries) or self.events.impossible:
            raise StateError(f"the snapshot has {wrong}")

    def recovered(self) -> None:
        """A process has died at any point: go on where it was."""
        cc, status = ControllerConfiguration(self.device.cc), self.device.csts
        self.restored(died=True)
        if cc.enable and not status & (registers.READY | registers.FATAL):
            self._start(cc)
        elif status & registers.READY and not cc.enable and self.queues.admin.size:
            self._stop()
        if cc.shutdown and not status & registers.SHUTDOWN_MASK:
            self._shut_down()

    def restored(self, *, died: bool = False) -> None:
        """The state has been restored: do the commands again that were under way in it."""
        self.queues.shadow.restored()
        try:
            entries = self.engine.restored(died=died)
        except GuestError as error:
            raise StateError(f"the queues are gone: {error}") from error
        self._go_on()
        if self.device.csts & registers.SHUTDOWN_BUSY:
            self._shut_down()
        if self.live:
            self.engine.begin_again(entries)
        else:
            self.ended()

    def _start(self, configuration: ControllerConfiguration) -> None:
        """Start the controller (§7.6.1). Registers give the admin queues."""
        device = self.device
        sizes = device.aqa
        submission, completion = (sizes & 0xFFF) + 1, (sizes >> 16) + 1
        if configuration.command_set or configuration.page_size or configuration.arbitration:
            self.break_down(f"CC {device.cc:#x} asks for what CAP does not offer")
        elif min(submission, completion) < 2:
            self.break_down(f"AQA {sizes:#x}: a queue has at least two entries")
        else:
            self._forget()
            self.features.reset()
            self.queues.create_admin(device.asq, submission, device.acq, completion)
            device.csts = registers.READY

    def _stop(self) -> None:
        """Stop the controller (§7.3.2). Queues end at once. CSTS.RDY stays set until no thread uses guest memory."""
        self._forget()
        self.history.add(Happening.RESET, reset_event(self.store.record.power_cycles, self.timestamp.now))
        if not self.engine.busy:
            self._stopped()

    def ended(self) -> None:
        """Threads have ended commands of queues that are gone. After the last one, a stopping controller stops."""
        if self.device.csts & registers.READY and not self.queues.admin.size and not self.engine.busy:
            self._stopped()

    def _stopped(self) -> None:
        device = self.device
        device.csts = 0
        if device.cc & registers.ENABLE:
            self._start(ControllerConfiguration(device.cc))

    def _forget(self) -> None:
        self.events.reset()
        self.history.release()
        self.self_test.controller_reset()
        self.queues.forget()
        self.engine.forget()

    def _shut_down(self) -> None:
        """Shut down (§7.6.2): put everything that was written onto the media."""
        self.device.csts = self.device.csts & ~registers.SHUTDOWN_MASK | registers.SHUTDOWN_BUSY
        self._shutdown = Job(flush_all, self.namespaces.allocated)
        self.engine.background(self._shutdown, self._shutdown_ended)

    def _shutdown_ended(self, job: Job) -> None:
        if job.error is not None:
            self.device.warn("flush at shutdown: %s", job.error)
            self.store.disks.note_losses()
        if job is self._shutdown and self.device.csts & registers.SHUTDOWN_BUSY:  # else: a reset
            self.device.csts ^= registers.SHUTDOWN_BUSY | registers.SHUTDOWN_DONE

    def break_down(self, why: str) -> None:
        """Set Controller Fatal Status (§9.5). Only a reset clears it."""
        self.device.warn("controller fatal status: %s", why)
        self.device.csts |= registers.FATAL
        self.history.add(Happening.HARDWARE_ERROR, struct.pack("<H2x", CONTROLLER_FATAL))
        self.telemetry.failed(why)
        self.save_soon()

    def media_failed(self, error: Exception) -> None:
        """An image has failed: record the failure for the host, and for a successor."""
        self.store.disks.note_losses()
        self.telemetry.failed(str(error))
        self.save_soon()
        if self.features[FeatureId.EVENTS] & TELEMETRY_NOTICES:
            self.happened(Event.TELEMETRY_CHANGED)

    def resize(self, size: int, *, shrink: bool) -> None:
        """Change the size of the disks that the device was started with, and tell the host (§5.2, OAES).

        0 takes over the present size of each image. A StorageError if the size is not possible.
        """
        spaces = [space for space in self.namespaces.allocated if not space.made]
        for space in spaces:
            space.check_resize(size, shrink=shrink)
        self.engine.pool.finish()  # a write that is under way would make a shorter file longer again
        for space in spaces:
            if space.resize(size, shrink=shrink):
                self.events.namespace_changed(space.nsid)
        self.save_soon()
        if self.features[FeatureId.EVENTS] & NAMESPACE_NOTICES and any(space.attached for space in spaces):
            self.happened(Event.NAMESPACE_ATTRIBUTE_CHANGED)

    def happened(self, event: Event) -> None:
        """Report ``event`` to the host, as soon as it has an event request open (§5.2)."""
        self.events.happened(event)
        self.engine.tell_events()

    def close(self) -> None:
        """Save for the last time, and close disks and store."""
        self.keeper.close()
        self.namespaces.close()

    # -- the store

    def save(self) -> None:
        """Save the store, before the host is told of a change. Raises OSError."""
        self.keeper.save()

    def save_soon(self) -> None:
        """Save the store in the background."""
        self.keeper.save_soon()
