"""Faults: hardware that fails on demand, so that its driver can be tested. See docs/faults.md.

Everything that the author of a fault imports is here.
"""

from bellwire.faults.fault import Fault, LastingFault
from bellwire.faults.schedule import Schedule

__all__ = ["Fault", "LastingFault", "Schedule"]
