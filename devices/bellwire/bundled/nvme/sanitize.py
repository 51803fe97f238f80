"""Sanitize (§5.24, §8.15): everything that was ever written is erased, in the background."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import msgspec

from bellwire import Job
from bellwire.bundled.nvme.command import Byte, Command
from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.history import Happening
from bellwire.bundled.nvme.self_test import Result
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import Disk

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

BLOCK_ERASE = 1 << 1
NO_DEALLOCATE_INHIBITED = 1 << 29
MEDIA_NOT_MODIFIED_AFTERWARDS = 1 << 30
CAPABILITIES = BLOCK_ERASE | NO_DEALLOCATE_INHIBITED | MEDIA_NOT_MODIFIED_AFTERWARDS
"""SANICAP (§5.15.2.2)."""
UNRESTRICTED_EXIT = 1 << 3
NO_DEALLOCATE = 1 << 9
IDLE = 0xFFFF
"""The progress without an operation; during one it is in parts of 65536."""
UNKNOWN_TIME = 0xFFFF_FFFF


class Action(IntEnum):
    """The sanitize actions."""

    EXIT_FAILURE_MODE = 1
    BLOCK_ERASE = 2


class State(IntEnum):
    """The state of the most recent operation, for the log."""

    NEVER = 0
    COMPLETED = 1
    IN_PROGRESS = 2
    FAILED = 3


class Sanitize:
    """The sanitize operation on all disks of ``controller``. The store has its state, so a restart continues it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._state = controller.store.record.sanitize
        self._progress: int
        """Of 65536, while an operation is in progress."""

    def execute(self, command: Command) -> int:
        """Check the command and begin, or leave failure mode."""
        action = command.cdw10 & 7
        if action == Action.EXIT_FAILURE_MODE:
            return self._leave_failure_mode()
        if action != Action.BLOCK_ERASE or command.cdw10 & NO_DEALLOCATE:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        if self._state.status == State.IN_PROGRESS:
            raise CommandError(Status.SANITIZE_IN_PROGRESS)
        controller = self._controller
        for space in controller.namespaces.allocated:
            space.check_free()
        if any(disk.readonly for disk in controller.namespaces.disks):
            raise CommandError(Status.WRITE_PROTECTED)
        controller.self_test.interrupt(Result.SANITIZED, controller.namespaces.allocated)
        before = msgspec.structs.astuple(self._state)
        self._set(State.IN_PROGRESS, command.cdw10, failure_mode=False)
        try:
            controller.save()
        except OSError:
            self._set(*before)
            raise
        controller.namespaces.close_for(Status.SANITIZE_IN_PROGRESS)
        start = struct.pack("<III", CAPABILITIES, command.cdw10, command.cdw11)
        controller.history.add(Happening.SANITIZE_START, start)
        self._begin()
        return 0

    def resume(self) -> None:
        """Continue the operation, at a start or after the threads have dropped their jobs."""
        if self._state.status == State.IN_PROGRESS:
            self._controller.namespaces.close_for(Status.SANITIZE_IN_PROGRESS)
            self._begin()
        elif self._state.failure_mode:
            self._controller.namespaces.close_for(Status.SANITIZE_FAILED)

    def page(self, _: Command) -> bytes:
        """Sanitize Status (§5.14.1.16.2)."""
        running = self._state.status == State.IN_PROGRESS
        progress = self._progress if running else IDLE
        times = [UNKNOWN_TIME] * 6
        return struct.pack("<HHI6I", progress, self._state.status, self._state.action, *times).ljust(512, b"\0")

    def _leave_failure_mode(self) -> int:
        if self._state.status == State.IN_PROGRESS:
            raise CommandError(Status.SANITIZE_IN_PROGRESS)
        if self._state.failure_mode:
            if not self._state.action & UNRESTRICTED_EXIT:
                raise CommandError(Status.SANITIZE_FAILED)
            self._state.failure_mode = False
            self._controller.namespaces.close_for(None)
            self._controller.save_soon()
        return 0

    def _set(self, status: int, action: int, failure_mode: bool) -> None:
        self._state.status, self._state.action, self._state.failure_mode = status, action, failure_mode

    def _begin(self) -> None:
        self._progress = 0
        job = Job(self._erase, self._controller.namespaces.disks)
        self._controller.engine.background(job, self._ended, alone=True)

    def _erase(self, disks: Sequence[Disk]) -> None:
        """Erase the disks, on a thread."""
        for number, disk in enumerate(disks):
            self._progress = number * 0x10000 // len(disks)
            disk.empty()

    def _ended(self, job: Job) -> None:
        controller, state = self._controller, self._state
        if job.error is None:
            state.status = State.COMPLETED
            for space in controller.namespaces.allocated:
                space.lost.clear()
            controller.namespaces.close_for(None)
        else:
            controller.device.warn("sanitize: %s", job.error)
            state.status, state.failure_mode = State.FAILED, True
            controller.namespaces.close_for(Status.SANITIZE_FAILED)
        controller.history.add(Happening.SANITIZE_END, struct.pack("<HHHxx", IDLE, state.status, 0))
        controller.save_soon()
        controller.happened(Event.SANITIZE_COMPLETED)
