"""Admin commands (§5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bellwire import Job
from bellwire.bundled.nvme import timestamp
from bellwire.bundled.nvme.command import COMMAND_SIZE, COMPLETION_SIZE, AdminOpcode, Byte, Command
from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.features import FeatureId, Select
from bellwire.bundled.nvme.guest_pages import SCATTERED
from bellwire.bundled.nvme.history import Happening
from bellwire.bundled.nvme.inquiry import Inquiry
from bellwire.bundled.nvme.io import flush_all
from bellwire.bundled.nvme.logs import LogPage, requested
from bellwire.bundled.nvme.registers import ENTRIES, PAGE, QUEUES, ControllerConfiguration
from bellwire.bundled.nvme.status import CommandError, Status

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller
    from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue

CONTIGUOUS, INTERRUPTS = 1 << 0, 1 << 1
RETAIN_EVENT = 1 << 15
NOT_ABORTED = 1
WHILE_SANITIZING = (
    AdminOpcode.DELETE_SUBMISSION_QUEUE,
    AdminOpcode.CREATE_SUBMISSION_QUEUE,
    AdminOpcode.DELETE_COMPLETION_QUEUE,
    AdminOpcode.CREATE_COMPLETION_QUEUE,
    AdminOpcode.IDENTIFY,
    AdminOpcode.ABORT,
    AdminOpcode.SET_FEATURES,
    AdminOpcode.GET_FEATURES,
    AdminOpcode.ASYNC_EVENT_REQUEST,
    AdminOpcode.DOORBELL_BUFFER_CONFIG,
    AdminOpcode.SANITIZE,
)
LOGS_WHILE_SANITIZING = (LogPage.ERRORS, LogPage.HEALTH, LogPage.CHANGED_NAMESPACES, LogPage.SANITIZE)


Answer = int | Job | None
"""An int is the result of the completion. A job must be done first. None: the command completes later."""


class Admin:
    """Executes the admin commands of ``controller``. A command that fails raises a CommandError."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.again = False
        """Whether commands may have been executed before, by a process that has died."""
        self._inquiry = Inquiry(controller)
        self._commands: dict[int, Callable[[Command], Answer]] = {
            AdminOpcode.DELETE_SUBMISSION_QUEUE: self._delete_submission_queue,
            AdminOpcode.CREATE_SUBMISSION_QUEUE: self._create_submission_queue,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.DELETE_COMPLETION_QUEUE: self._delete_completion_queue,
            AdminOpcode.CREATE_COMPLETION_QUEUE: self._create_completion_queue,
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.SET_FEATURES: self._set_features,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.ASYNC_EVENT_REQUEST: self._async_event_request,
            AdminOpcode.NAMESPACE_MANAGEMENT: controller.management.manage,
            AdminOpcode.DEVICE_SELF_TEST: controller.self_test.execute,
            AdminOpcode.NAMESPACE_ATTACHMENT: controller.management.attach,
            AdminOpcode.DOORBELL_BUFFER_CONFIG: self._doorbell_buffer_config,
            AdminOpcode.FORMAT_NVM: controller.format.execute,
            AdminOpcode.SANITIZE: controller.sanitize.execute,
        }

    def execute(self, command: Command) -> Answer:
        """Execute ``command``."""
        handler = self._commands.get(command.opcode)
        if handler is None:
            raise CommandError(Status.INVALID_OPCODE, Byte.OPCODE)
        if command.flags & SCATTERED:
            raise CommandError(Status.INVALID_FIELD, Byte.FLAGS)
        closed = self._controller.namespaces.closed
        if closed is not None and not _allowed(command):
            raise CommandError(closed)
        if self.again and command.opcode == AdminOpcode.NAMESPACE_MANAGEMENT:  # done twice, it would make two
            raise CommandError(Status.INTERNAL_ERROR)
        return handler(command)

    def _identify(self, command: Command) -> int:
        """Identify (§5.15)."""
        self._give(command, self._inquiry.page(command))
        return 0

    def _get_log_page(self, command: Command) -> int:
        """Get Log Page (§5.14)."""
        controller = self._controller
        number = command.cdw10 & 0xFF
        places = controller.pages.extents(command, requested(command))
        controller.pages.scatter(places, controller.logs.get(command))
        if not command.cdw10 & RETAIN_EVENT:
            controller.events.seen(number)
            if number == LogPage.CONTROLLER_TELEMETRY:
                controller.telemetry.seen()
                controller.save_soon()
            controller.engine.tell_events()
        return 0

    def _get_features(self, command: Command) -> int:
        """Get Features (§5.13)."""
        controller = self._controller
        result = controller.features.get(command)
        select = command.cdw10 >> 8 & 7
        if command.cdw10 & 0xFF == FeatureId.TIMESTAMP and select != Select.CAPABILITIES:
            self._give(command, controller.timestamp.get() if select == Select.CURRENT else bytes(timestamp.SIZE))
        return result

    def _set_features(self, command: Command) -> Answer:
        """Set Features (§5.21). A host without write cache never flushes, so turning it off writes its content."""
        controller = self._controller
        io_queues = (*controller.queues.submissions[1:], *controller.queues.completions[1:])
        result = controller.features.set(command, queues_exist=any(queue.size for queue in io_queues))
        number = command.cdw10 & 0xFF
        if number == FeatureId.TIMESTAMP:
            data = controller.pages.gather(controller.pages.extents(command, timestamp.SIZE))
            controller.history.add(Happening.TIMESTAMP, controller.timestamp.set(data))
        if controller.features.alarming:
            controller.happened(Event.TEMPERATURE)
        if number == FeatureId.WRITE_CACHE and not controller.features.write_cache:
            return Job(flush_all, controller.namespaces.attached)
        return result

    def _async_event_request(self, command: Command) -> None:
        """Asynchronous Event Request (§5.2). It stays open until there is an event."""
        if not (self.again and self._controller.events.waits(command.cid)):
            self._controller.events.request(command.cid)
        self._controller.engine.tell_events()

    def _abort(self, command: Command) -> int:
        """Abort (§5.1). It aborts event requests only: an I/O command ends soon by itself."""
        sqid, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
        controller = self._controller
        if sqid == 0 and controller.queues.completions[0].room > 0 and controller.events.withdraw(cid):
            controller.engine.complete(0, cid, Status.ABORTED_BY_REQUEST.field)
            return 0
        return NOT_ABORTED

    def _doorbell_buffer_config(self, command: Command) -> int:
        """Doorbell Buffer Config (§5.7)."""
        for address, where in ((command.prp1, Byte.PRP1), (command.prp2, Byte.PRP2)):
            if not address or address % PAGE:
                raise CommandError(Status.INVALID_FIELD, where)
        self._controller.queues.shadow.configure(command.prp1, command.prp2)
        self._controller.engine.kick_all()
        return 0

    def _create_completion_queue(self, command: Command) -> int:
        """Create I/O Completion Queue (§5.3)."""
        controller = self._controller
        if self._exists(command, controller.queues.completions):
            return 0
        qid, size = self._new_queue(command, [queue.size for queue in controller.queues.completions])
        vector = command.cdw11 >> 16
        if vector > (QUEUES if controller.device.irq.enabled else 0):
            raise CommandError(Status.INVALID_INTERRUPT_VECTOR, Byte.CDW11)
        if 1 << ControllerConfiguration(controller.device.cc).completion_size != COMPLETION_SIZE:
            raise CommandError(Status.INVALID_QUEUE_SIZE, Byte.CDW10)
        controller.queues.completions[qid].create(command.prp1, size, vector, bool(command.cdw11 & INTERRUPTS))
        if controller.queues.shadow.active:  # the shadow still has the values of an earlier queue with this number
            controller.queues.shadow.wake_at_head(qid, 0)
        return 0

    def _create_submission_queue(self, command: Command) -> int:
        """Create I/O Submission Queue (§5.4)."""
        controller = self._controller
        if self._exists(command, controller.queues.submissions):
            return 0
        qid, size = self._new_queue(command, [queue.size for queue in controller.queues.submissions])
        cqid = command.cdw11 >> 16
        if not 0 < cqid <= controller.queues.most:
            raise CommandError(Status.INVALID_QUEUE_ID, Byte.CDW11)
        if not controller.queues.completions[cqid].size:
            raise CommandError(Status.INVALID_COMPLETION_QUEUE, Byte.CDW11)
        if 1 << ControllerConfiguration(controller.device.cc).submission_size != COMMAND_SIZE:
            raise CommandError(Status.INVALID_QUEUE_SIZE, Byte.CDW10)
        controller.queues.submissions[qid].create(command.prp1, size, cqid)
        if controller.queues.shadow.active:
            controller.queues.shadow.wake_at_tail(qid, 0)
        return 0

    def _exists(self, command: Command, queues: Sequence[SubmissionQueue] | Sequence[CompletionQueue]) -> bool:
        """Whether a command that is executed again has created its queue the first time."""
        qid, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        return self.again and qid < len(queues) and (queues[qid].size, queues[qid].base) == (size, command.prp1)

    def _is_gone(self, qid: int, queues: Sequence[SubmissionQueue] | Sequence[CompletionQueue]) -> bool:
        """Whether a command that is executed again has deleted its queue the first time."""
        return self.again and 0 < qid <= self._controller.queues.most and not queues[qid].size

    def _new_queue(self, command: Command, sizes: list[int]) -> tuple[int, int]:
        """The number and the entries of a queue to be created. Both kinds of queues need these checks."""
        qid, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        if not 0 < qid <= self._controller.queues.most or sizes[qid]:
            raise CommandError(Status.INVALID_QUEUE_ID, Byte.CDW10)
        if not 2 <= size <= ENTRIES:
            raise CommandError(Status.INVALID_QUEUE_SIZE, Byte.CDW10)
        if not command.cdw11 & CONTIGUOUS:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW11)
        if command.prp1 % PAGE:
            raise CommandError(Status.INVALID_PRP_OFFSET, Byte.PRP1)
        return qid, size

    def _delete_submission_queue(self, command: Command) -> Answer:
        """Delete I/O Submission Queue (§5.6). It completes when no thread works for the queue any more."""
        controller = self._controller
        qid = command.cdw10 & 0xFFFF
        if self._is_gone(qid, controller.queues.submissions):
            return 0
        if not 0 < qid <= controller.queues.most or not controller.queues.submissions[qid].size:
            raise CommandError(Status.INVALID_QUEUE_ID, Byte.CDW10)
        queue = controller.queues.submissions[qid]
        if self.again and queue.deleter == command.cid + 1:
            return None
        if queue.deleter:
            raise CommandError(Status.INVALID_QUEUE_ID, Byte.CDW10)
        if queue.running:
            queue.deleter = command.cid + 1
            controller.queues.completions[0].running += 1
            return None
        queue.size = 0
        return 0

    def _delete_completion_queue(self, command: Command) -> int:
        """Delete I/O Completion Queue (§5.5). Refused while a submission queue uses it."""
        controller = self._controller
        qid = command.cdw10 & 0xFFFF
        if self._is_gone(qid, controller.queues.completions):
            return 0
        if not 0 < qid <= controller.queues.most or not controller.queues.completions[qid].size:
            raise CommandError(Status.INVALID_QUEUE_ID, Byte.CDW10)
        if any(queue.size and queue.cqid == qid for queue in controller.queues.submissions[1:]):
            raise CommandError(Status.INVALID_QUEUE_DELETION, Byte.CDW10)
        controller.queues.completions[qid].size = 0
        controller.queues.interrupts.level()
        return 0

    def _give(self, command: Command, page: bytes) -> None:
        pages = self._controller.pages
        pages.scatter(pages.extents(command, len(page)), page)


def _allowed(command: Command) -> bool:
    """Whether a command is allowed during a sanitize operation, or after one has failed (§8.15)."""
    if command.opcode == AdminOpcode.GET_LOG_PAGE:
        return command.cdw10 & 0xFF in LOGS_WHILE_SANITIZING
    return command.opcode in WHILE_SANITIZING
