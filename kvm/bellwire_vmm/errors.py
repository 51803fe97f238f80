"""The errors of the VMM itself. kvm_ioctls and vfio_user have errors of their own."""

from __future__ import annotations


class VmmError(Exception):
    """The base of this package's errors."""


class GuestImageError(VmmError):
    """A guest image is missing, malformed, or too large for its place in memory."""


class DeviceRefusedError(VmmError):
    """A device describes itself in a way that cannot be shown to a guest."""


class ZoneRefusedError(VmmError):
    """The writes to a part of a BAR cannot wait for the next exit."""


class AddressConflictError(VmmError):
    """A range of addresses is taken already, or there is no free one."""


class StateError(VmmError):
    """The state of a machine cannot be taken, is damaged, or is not of a machine like this one."""


class MigrationError(VmmError):
    """A machine cannot be moved. It is still where it was, unless the message says something else."""
