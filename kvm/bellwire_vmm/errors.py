"""What can go wrong in the VMM itself; kvm_ioctls and vfio_user have errors of their own."""

from __future__ import annotations


class VmmError(Exception):
    """Base of this package's errors."""


class GuestImageError(VmmError):
    """A guest image that is missing, or too large for where it goes."""


class DeviceRefusedError(VmmError):
    """A device that describes itself in a way that no guest can be shown."""


class ZoneRefusedError(VmmError):
    """A part of a BAR whose writes cannot wait for the next exit."""


class AddressConflictError(VmmError):
    """A range of addresses that is taken already."""
