"""Bellwire's device SDK: write a PCI device as a Python class.

See docs/writing-a-device.md for a tutorial. Everything that a device author imports is here.
"""

from bellwire.access import Access
from bellwire.bar import Area, Bar
from bellwire.device import PciDevice
from bellwire.doorbell import Doorbell, IoRegion
from bellwire.errors import BellwireError, DeclarationError, GuestError, OptionError, StateError, Unshared
from bellwire.host import Timer
from bellwire.interrupts import IntX, Msi, MsiX
from bellwire.option import Option
from bellwire.pool import Job, Pool
from bellwire.register import Register
from bellwire.saved import Saved, SavedBytes
from bellwire.vendor import VendorCapability

__all__ = [
    "Access",
    "Area",
    "Bar",
    "BellwireError",
    "DeclarationError",
    "Doorbell",
    "GuestError",
    "IntX",
    "IoRegion",
    "Job",
    "Msi",
    "MsiX",
    "Option",
    "OptionError",
    "PciDevice",
    "Pool",
    "Register",
    "Saved",
    "SavedBytes",
    "StateError",
    "Timer",
    "Unshared",
    "VendorCapability",
]
