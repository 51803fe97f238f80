"""What can go wrong with a guest."""

from __future__ import annotations

from bellwired.errors import CommandError


class MachineError(CommandError):
    """The guest or its machine has failed. ``console`` is the end of what the guest's kernel has printed."""

    def __init__(self, message: str, hint: str = "", *, console: str = "") -> None:
        super().__init__(message, hint)
        self.console = console


class MachineGone(MachineError):
    """The guest has ended: it has powered off, its kernel has panicked, or QEMU has failed."""


class ChannelError(MachineError):
    """A frame that breaks the rules of :mod:`bellwired.guest.frames`."""


class CommandTimeout(MachineError):
    """A command in the guest took too long, and was killed."""


class ModuleInUse(MachineError):
    """A kernel module that cannot be unloaded, because something uses it."""


class CommandFailed(MachineError):
    """A command in the guest ended with another status than 0, and was to be checked."""
