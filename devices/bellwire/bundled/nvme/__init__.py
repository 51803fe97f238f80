"""nvme: a disk, and the parts of its controller, one noun a file.

Chapter and section numbers are of the NVM Express Base Specification 1.4. `device` has the options and the hooks;
`controller` is the state machine of the registers and joins the parts; `store` has what outlives the device. The way
of a command is: doorbells → engine → queue_set → engine → admin, io or optional → queue_set → interrupts.
"""

from bellwire.bundled.nvme.device import Nvme

__all__ = ["Nvme"]
