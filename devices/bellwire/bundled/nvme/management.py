"""Namespace Management and Attachment (§5.20, §5.19, §8.12): create, delete, attach and detach namespaces."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import ALL_NAMESPACES, Byte, Command
from bellwire.bundled.nvme.history import Happening
from bellwire.bundled.nvme.identify import CONTROLLER_ID
from bellwire.bundled.nvme.inventory import identity
from bellwire.bundled.nvme.namespace import FORMATS, Namespace
from bellwire.bundled.nvme.self_test import Result
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.task import Task
from bellwire.storage import Disk, StorageError

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

CREATE, DELETE = 0, 1
ATTACH, DETACH = 0, 1
PAGE = 4096
CHANGE = struct.Struct("<I4xQQ8xBBBxIHHI")
"""Data of a Change Namespace event (§5.14.1.13)."""


class Management:
    """Changes the namespaces of ``controller``. A change is in the store before its command completes."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def manage(self, command: Command) -> int | Task:
        """Namespace Management (§5.20)."""
        operation = command.cdw10 & 0xF
        if operation not in (CREATE, DELETE):
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        if self._controller.read_only:
            raise CommandError(Status.WRITE_PROTECTED)
        return self._create(command) if operation == CREATE else self._delete(command)

    def _create(self, command: Command) -> int:
        """Create a namespace that is not attached yet. Returns its ID."""
        pages = self._controller.pages
        wanted = pages.gather(pages.extents(command, PAGE))
        if command.nsid:
            raise CommandError(Status.INVALID_FIELD, Byte.NSID)
        blocks, capacity = struct.unpack_from("<QQ", wanted)
        number, protection, shared = wanted[26], wanted[29], wanted[30]
        if number >= len(FORMATS) or protection:
            raise CommandError(Status.INVALID_FORMAT, Byte.PRP1)
        if capacity != blocks:
            raise CommandError(Status.THIN_PROVISIONING_NOT_SUPPORTED, Byte.PRP1)
        if not blocks or shared:
            raise CommandError(Status.INVALID_FIELD, Byte.PRP1)
        space = self._make(blocks, FORMATS[number])
        try:
            self._controller.save()
        except OSError:
            self._controller.namespaces.remove(space)
            self._controller.store.remove(space.nsid)
            raise
        self._record(command.cdw10, [space])
        return space.nsid

    def _make(self, blocks: int, shift: int) -> Namespace:
        controller = self._controller
        namespaces, store = controller.namespaces, controller.store
        if blocks << shift > namespaces.unallocated:
            raise CommandError(Status.NAMESPACE_INSUFFICIENT_CAPACITY, Byte.PRP1)
        nsid, number = namespaces.free_id(), store.record.made + 1
        try:
            disk = store.disk(nsid, blocks << shift, 1 << shift, direct=controller.direct, new=True)
        except StorageError as error:
            controller.device.warn("namespace %d: %s", nsid, error)
            raise CommandError(Status.INTERNAL_ERROR) from error
        store.record.made = number
        name = identity(controller.identity.uuid, nsid, number)
        space = Namespace(nsid, disk, 1 << shift, name, attached=False, number=number)
        namespaces.add(space)
        return space

    def _delete(self, command: Command) -> Task:
        """Delete a namespace. Its data is erased, from an image too."""
        controller = self._controller
        namespaces = controller.namespaces
        spaces = namespaces.allocated if command.nsid == ALL_NAMESPACES else [namespaces.existing(command.nsid)]
        for space in spaces:
            space.check_free()
        controller.self_test.interrupt(Result.NAMESPACE_REMOVED, spaces)
        namespaces.hold(spaces, Status.INVALID_FIELD)

        def ended(error: Exception | None) -> int:
            namespaces.hold(spaces, None)
            if error is None:
                self._forget(command.cdw10, spaces)
            return 0

        return Task(_empty, [space.disk for space in spaces], ended=ended, alone=True)

    def _forget(self, dword10: int, spaces: list[Namespace]) -> None:
        controller = self._controller
        self._record(dword10, spaces)
        for space in spaces:
            controller.namespaces.remove(space)
            if not space.made:
                controller.store.record.deleted.append(space.nsid)
        controller.save()
        for space in spaces:
            if space.made:
                controller.store.remove(space.nsid)

    def attach(self, command: Command) -> int:
        """Namespace Attachment (§5.19), to this controller only: there is no other."""
        controller = self._controller
        operation = command.cdw10 & 0xF
        if operation not in (ATTACH, DETACH):
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        pages = controller.pages
        listed = pages.gather(pages.extents(command, PAGE))
        space = controller.namespaces.existing(command.nsid)
        space.check_free()
        count, first = struct.unpack_from("<HH", listed)
        if count != 1 or first != CONTROLLER_ID:
            raise CommandError(Status.CONTROLLER_LIST_INVALID, Byte.PRP1)
        if operation == ATTACH and space.attached:
            raise CommandError(Status.NAMESPACE_ALREADY_ATTACHED, Byte.NSID)
        if operation == DETACH and not space.attached:
            raise CommandError(Status.NAMESPACE_NOT_ATTACHED, Byte.NSID)
        space.attached = operation == ATTACH
        try:
            controller.save()
        except OSError:
            space.attached = operation != ATTACH
            raise
        controller.namespaces.refresh()
        return 0

    def _record(self, dword10: int, spaces: list[Namespace]) -> None:
        for space in spaces:
            form = FORMATS.index(space.shift)
            data = CHANGE.pack(dword10, space.blocks, space.blocks, form, 0, 0, 0, 0, 0, space.nsid)
            self._controller.history.add(Happening.CHANGE_NAMESPACE, data)


def _empty(disks: list[Disk]) -> None:
    """Empty the disks, on a thread."""
    for disk in disks:
        disk.empty()
