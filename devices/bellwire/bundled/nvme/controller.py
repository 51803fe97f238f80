"""The controller's registers and its state machine: it starts, stops, shuts down and breaks (§3.1, §7.3, §7.6)."""

from __future__ import annotations

from typing import NamedTuple

from bellwire import Job
from bellwire.bundled.nvme import registers
from bellwire.bundled.nvme.command import ALL_NAMESPACES
from bellwire.bundled.nvme.engine import Engine
from bellwire.bundled.nvme.events import Event, Events, EventState
from bellwire.bundled.nvme.features import Features
from bellwire.bundled.nvme.guest_pages import GuestPages
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.io import flush_all
from bellwire.bundled.nvme.journal import Journal
from bellwire.bundled.nvme.logs import Counters, Logs
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.queue_set import QueueSet
from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue, queues_in
from bellwire.bundled.nvme.registers import ControllerConfiguration, Registers
from bellwire.bundled.nvme.shadow import Shadow, ShadowState


class StateViews(NamedTuple):
    """Where in the device's state the controller keeps what it must remember."""

    submissions: memoryview
    completions: memoryview
    features: memoryview
    counters: memoryview
    errors: memoryview
    events: memoryview
    shadow: memoryview
    journal: memoryview


class Controller:
    """Joins the parts. ``device`` has the registers; ``queues`` I/O queue pairs may be created."""

    def __init__(
        self,
        device: Registers,
        state: StateViews,
        namespaces: Namespaces,
        identity: ControllerIdentity,
        queues: int,
    ) -> None:
        self.device = device
        self.namespaces = namespaces
        self.identity = identity
        self.features = Features(state.features.cast("I"), queues, len(namespaces))
        self.logs = Logs(Counters.from_buffer(state.counters), state.errors, self.features)
        self.events = Events(EventState.from_buffer(state.events))
        self.pages = GuestPages(device.dma)
        self.queues = QueueSet(
            device,
            queues_in(state.submissions, SubmissionQueue),
            queues_in(state.completions, CompletionQueue),
            Shadow(ShadowState.from_buffer(state.shadow), device.dma),
            self.features,
            queues,
            self.happened,
        )
        self.engine = Engine(self, Journal(state.journal))
        self._file = device.storage(Registers.mmio)
        self._shutdown: Job | None = None

    @property
    def live(self) -> bool:
        """Whether commands are taken: ready, not about to stop, and nothing has broken.

        This is asked at every turn, so it looks at the register's lowest byte itself.
        """
        status = self._file[Registers.csts.offset]
        return status & (registers.READY | registers.FATAL) == registers.READY and self.queues.admin.size != 0

    def configure(self, before: int, now: int) -> None:
        """CC went from ``before`` to ``now`` (§3.1.5)."""
        old, new = ControllerConfiguration(before), ControllerConfiguration(now)
        if new.enable and not old.enable:
            if not self.device.csts & registers.READY:  # else it is still stopping, and starts when it has stopped
                self._start(new)
        elif old.enable and not new.enable:
            self._stop()
        if new.shutdown and new.shutdown != old.shutdown:
            self._shut_down()

    def power_on(self) -> None:
        """After a reset of the whole device: its state has been zeroed, and no thread works for it any more."""
        self._forget()
        self.engine.clear()
        self.features.reset()

    def restored(self) -> None:
        """The state is another one: do again what was under way in it."""
        entries = self.engine.restored()
        if self.device.csts & registers.SHUTDOWN_BUSY:
            self._shut_down()
        if self.live:
            self.engine.begin_again(entries)
        else:
            self.ended()

    def _start(self, configuration: ControllerConfiguration) -> None:
        """§7.6.1: the admin queues come from registers."""
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
        """§7.3.2: queues are gone at once; ready until no thread touches guest memory any more."""
        self._forget()
        if not self.engine.busy:
            self._stopped()

    def ended(self) -> None:
        """Threads have ended commands whose queues are gone: once all have, a controller that was stopping stops."""
        if self.device.csts & registers.READY and not self.queues.admin.size and not self.engine.busy:
            self._stopped()

    def _stopped(self) -> None:
        device = self.device
        device.csts = 0
        if device.cc & registers.ENABLE:
            self._start(ControllerConfiguration(device.cc))

    def _forget(self) -> None:
        self.events.reset()
        self.queues.forget()
        self.engine.forget()

    def _shut_down(self) -> None:
        """§7.6.2: what has been written goes onto the media."""
        self.device.csts = self.device.csts & ~registers.SHUTDOWN_MASK | registers.SHUTDOWN_BUSY
        self._shutdown = Job(flush_all, self.namespaces.addressed(ALL_NAMESPACES), tag=self._shutdown_ended)
        self.engine.pool.submit(self._shutdown)

    def _shutdown_ended(self, job: Job) -> None:
        if job.error is not None:
            self.device.warn("flush at shutdown: %s", job.error)
        if job is self._shutdown and self.device.csts & registers.SHUTDOWN_BUSY:  # else a reset has come between
            self.device.csts ^= registers.SHUTDOWN_BUSY | registers.SHUTDOWN_DONE

    def break_down(self, why: str) -> None:
        """Controller Fatal Status (§9.5): only a reset helps."""
        self.device.warn("controller fatal status: %s", why)
        self.device.csts |= registers.FATAL

    def happened(self, event: Event) -> None:
        """Tell the host, as soon as it has left a request for that (§5.2)."""
        self.events.happened(event)
        self.engine.tell_events()
