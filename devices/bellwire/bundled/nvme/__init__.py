"""nvme: an NVMe disk. Each file has one part of its controller.

Section numbers are of the NVM Express Base Specification 1.4. `device` has the options and the hooks. `controller` is
the state machine of the registers, and joins the parts. `store` keeps what outlives the device. A command takes this
way: doorbells → engine → queue_set → engine → admin, io or optional → queue_set → interrupts.
"""

from bellwire.bundled.nvme.device import Nvme

__all__ = ["Nvme"]
