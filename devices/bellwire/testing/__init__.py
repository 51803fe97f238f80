"""Test a device without a VM: in the test's own process, or served to a real client.

:class:`Guest` is the guest's side of a device: a test calls it directly, without a socket, and time passes only when
the test says so. :func:`conformance` gives any device a test suite in one line. :func:`serve` serves a device on a
socket for the length of a ``with`` block, and its ``live`` may be used meanwhile: see :class:`Live`.
:func:`option_rom` puts a header around code that firmware shall run.
"""

from bellwire.testing.conformance import conformance
from bellwire.testing.guest import Guest
from bellwire.testing.live import Live
from bellwire.testing.option_rom import option_rom
from bellwire.testing.serve import Serving, serve

__all__ = ["Guest", "Live", "Serving", "conformance", "option_rom", "serve"]
