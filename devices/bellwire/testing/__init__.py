"""Test a device with no VM, no socket and no clock but the test's own; or serve it to a real client.

:class:`Guest` is the guest's side of a device, called directly. :func:`conformance` gives any device a suite in
one line. :func:`serve` runs one behind a socket while a block lasts.
"""

from bellwire.testing.conformance import conformance
from bellwire.testing.guest import Guest
from bellwire.testing.serve import Serving, serve

__all__ = ["Guest", "Serving", "conformance", "serve"]
