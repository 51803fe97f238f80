"""Test a device with no VM, no socket and no clock but the test's own.

:class:`Guest` is the guest's side of a device, called directly. :func:`conformance` gives any device a suite in
one line.
"""

from bellwire.testing.conformance import conformance
from bellwire.testing.guest import Guest

__all__ = ["Guest", "conformance"]
