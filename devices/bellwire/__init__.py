"""Bellwire's device SDK: write a PCI device as a Python class.

See docs/writing-a-device.md for a tutorial. Everything that a device author imports is here.
"""

from bellwire.declare.access import Access
from bellwire.declare.bar import Area, Bar
from bellwire.declare.block import Block, doorbell, reg
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.interrupts import IntX, Msi, MsiX
from bellwire.declare.link import Link, PortType
from bellwire.declare.option import Option
from bellwire.declare.power import Power, PowerState
from bellwire.declare.register import Register
from bellwire.declare.rom import Rom
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.declare.vendor import VendorCapability
from bellwire.device import PciDevice
from bellwire.errors import BellwireError, DeclarationError, GuestError, OptionError, StateError, Unshared
from bellwire.model.host import Timer
from bellwire.model.jobs import Job, Pool
from bellwire.model.meter import Meter
from bellwire.pci.access_control import AccessControl, Acs
from bellwire.pci.data_objects import DataObject, Doe
from bellwire.pci.error_reporting import Aer, CorrectableError, ErrorMessage, UncorrectableError
from bellwire.pci.latency import Ltr
from bellwire.pci.resizable_bar import ResizableBars
from bellwire.pci.serial_number import SerialNumber
from bellwire.pci.translation import Ats, Pasid
from bellwire.pci.vendor_specific import Dvsec, Vsec

__all__ = [
    "Access",
    "AccessControl",
    "Acs",
    "Aer",
    "Area",
    "Ats",
    "Bar",
    "BellwireError",
    "Block",
    "CorrectableError",
    "DataObject",
    "DeclarationError",
    "Doe",
    "Doorbell",
    "Dvsec",
    "ErrorMessage",
    "GuestError",
    "IntX",
    "IoRegion",
    "Job",
    "Link",
    "Ltr",
    "Meter",
    "Msi",
    "MsiX",
    "Option",
    "OptionError",
    "Pasid",
    "PciDevice",
    "Pool",
    "PortType",
    "Power",
    "PowerState",
    "Register",
    "ResizableBars",
    "Rom",
    "Saved",
    "SavedBytes",
    "SerialNumber",
    "StateError",
    "Timer",
    "UncorrectableError",
    "Unshared",
    "VendorCapability",
    "Vsec",
    "doorbell",
    "reg",
]
