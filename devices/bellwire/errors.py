"""The errors of the device SDK: one small tree.

Every error that the SDK itself raises is a :class:`BellwireError`. The packages ``vfio_user`` and ``kvm_ioctls``
can be used without the SDK, so they have base errors of their own.
"""

from __future__ import annotations


class BellwireError(Exception):
    """Base of every error that the SDK raises."""


class DeclarationError(BellwireError, TypeError):
    """A device class declares something impossible. Raised while the class is being defined, so at import.

    ``place`` is the file and line of the declaration or method that is at fault; None if they are not known.
    """

    def __init__(self, message: str, place: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.place = place


class OptionError(BellwireError, ValueError):
    """The device has no such option, or the option cannot take the value."""


class StateError(BellwireError, ValueError):
    """A snapshot belongs to another device or is damaged, or a saved field cannot hold a value."""


class GuestError(BellwireError):
    """The guest did something wrong: a DMA outside its memory, a bad queue index, bus mastering left off.

    Device code raises it, or lets one that the SDK raised pass through. The SDK logs it at a limited rate, and the
    device keeps running.
    """


class Unshared(GuestError):
    """Device code asked for a view of guest memory that the client does not share.

    Such memory can only be copied, by messages to the client: use :meth:`bellwire.model.dma.Dma.read` and
    :meth:`~bellwire.model.dma.Dma.write`.
    """
