"""The errors of the device SDK: one small tree.

``vfio_user`` and ``kvm_ioctls`` have base errors of their own, since they stand alone; what the SDK raises
is always a :class:`BellwireError`.
"""

from __future__ import annotations


class BellwireError(Exception):
    """Base of every error that the SDK raises."""


class DeclarationError(BellwireError, TypeError):
    """A device class says something impossible. Raised while the class is being defined, so at import.

    ``place`` is the file and line of the declaration or method that is meant, where that is known.
    """

    def __init__(self, message: str, place: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.place = place


class OptionError(BellwireError, ValueError):
    """An option that the device does not have, or a value that it cannot take."""


class StateError(BellwireError, ValueError):
    """A snapshot that does not belong to this device, or a saved field that cannot hold the value."""


class GuestError(BellwireError):
    """The guest did something wrong: a DMA outside its memory, a bad queue index, bus mastering left off.

    Device code raises it (or lets the SDK's own pass through); the SDK logs it at a limited rate and the
    device lives on.
    """


class Unshared(GuestError):
    """Memory that the client has not shared was to be mapped: it can only be copied, by messages."""
