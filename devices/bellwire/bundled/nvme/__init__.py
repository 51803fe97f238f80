"""nvme: a disk, and the parts of its controller, one noun a file.

Chapter and section numbers are of the NVM Express Base Specification 1.4. `device` joins the parts; the
way of a command is: doorbells → controller → queues → admin or io → queues → interrupts.
"""

from bellwire.bundled.nvme.device import Nvme

__all__ = ["Nvme"]
