"""What a device can hand on to others, and how it hears that this has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bellwire.declare.doorbell import IoRegion
from vfio_user import DmaUnmap

if TYPE_CHECKING:
    from bellwire.model.core import Core


class Wired:
    """The part of :class:`~bellwire.PciDevice` for doorbells, interrupts and memory that others use directly."""

    core: Core
    awaits = False
    """Whether the device cannot run for a client before :meth:`resumed` has succeeded: another device has its files."""

    moves = False
    """Whether newer code of the device goes on in another process only: others work with what it has handed on."""

    def memory_changed(self) -> None:
        """Called when the client has mapped memory, before it is answered, and when it comes.

        It is also called before memory is unmapped, and before the client goes: :meth:`Dma.files` lists what remains
        then. Override it if guest memory has been handed on to another process, or to the kernel.
        """

    def wires_changed(self) -> None:
        """Called when interrupts were set, masked or enabled, config space written, or a client came or went.

        Override it if descriptors have been handed on: :meth:`lend` and ``self.irq[n].fd`` may give others now.
        """

    def leaving(self) -> None:
        """Called when this process is about to end, and another one goes on with the client.

        Override it if somebody else works with what was handed to them meanwhile: close what is open here, and undo
        nothing. ``memory_changed`` runs afterwards, as when a client leaves.
        """

    def halted(self) -> None:
        """Called when the device is to stand still for a migration: nothing of it runs from then on.

        Override it if somebody else works for the device by what it has handed on: that must end too. A StateError says
        why it cannot; the device then goes on. ``memory_changed`` and ``wires_changed`` are called when it runs again.
        """

    def resumed(self) -> None:
        """Called before the device runs again, here or where it has moved to.

        Override it to have back what :meth:`halted` has given away. If it raises, the device stands still as before.
        """

    def lend(self, row: IoRegion, offset: int) -> int | None:
        """The eventfd of a doorbell of ``row``, which somebody else reads from now on: the hooks of it do not run.

        None without a client. The row must be offered by :meth:`ring_by_event`. Rings that arrive as messages still run
        the write hook, which may pass them on. The descriptor is valid until ``wires_changed``.
        """
        return None if self.core.host is None else self.core.host.lend(row, offset)

    def take_back(self, row: IoRegion, offset: int) -> None:
        """Undo :meth:`lend`."""
        if self.core.host is not None:
            self.core.host.take_back(row, offset)

    def keep_file(self, name: str, fd: int, note: Mapping[str, Any] | None = None, *, lasting: bool = False) -> None:
        """Keep a file for the process that goes on with the client if this one dies: a duplicate of ``fd``.

        ``note`` comes with it; it holds what JSON can. A file of the same name is replaced. All of them are dropped
        when the client leaves, so keep them again for the next one. Without a client, nothing is kept.

        A ``lasting`` file belongs to the device's state. It is kept for each client, and goes along with every move of
        the device, with a client or without, and into newer code (an edit).
        """
        if self.core.host is not None:
            self.core.host.keep_file(name, fd, note or {}, lasting=lasting)

    def drop_file(self, name: str) -> None:
        """Undo :meth:`keep_file`."""
        if self.core.host is not None:
            self.core.host.drop_file(name)

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        """The file that a process before has kept by this name, with its note: for ``setup`` and ``recovered``.

        The caller owns the descriptor. A second call returns None, and so does any call after ``recovered``.
        """
        return None if self.core.host is None else self.core.host.kept_file(name)


class News:
    """Tells one device of changes, if it overrides the method that hears of them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        kind = type(core.device)
        self._hears_of_memory = kind.memory_changed is not Wired.memory_changed
        self._hears_of_wires = kind.wires_changed is not Wired.wires_changed

    def joined(self) -> None:
        """A client has come or gone."""
        self.configured()
        self.memory()

    def configured(self) -> None:
        """Config space has been written: DMA may be off now, and interrupts may go another way."""
        self._core.dma.changed()
        self.wires()

    def memory(self) -> None:
        """Guest memory has been mapped, or a client has come or gone."""
        if self._hears_of_memory:
            self._tell(self._core.device.memory_changed)

    def going(self, memory: DmaUnmap) -> None:
        """Guest memory is about to be unmapped."""
        if self._hears_of_memory:
            self._core.dma.going = memory
            try:
                self.memory()
            finally:
                self._core.dma.going = None

    def wires(self) -> None:
        """Interrupts have been set, masked or switched, or a client has come or gone."""
        if self._hears_of_wires:
            self._tell(self._core.device.wires_changed)

    def parting(self) -> None:
        """The client is about to leave, and its memory is still mapped."""
        self._core.connected = False
        self.memory()

    def _tell(self, hook: Callable[[], None]) -> None:
        """Run a hook. An error of it is logged: what the client asked for has been done."""
        core = self._core
        if core.still:  # all is told when it runs again
            return
        try:
            core.call(hook)
        except Exception as error:  # noqa: BLE001 the boundary to device code
            core.log.failure((hook.__name__, type(error)), error, "%s failed: %s", hook.__qualname__, error)
