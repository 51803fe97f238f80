"""The parts of the bundled NVMe controller, one noun a file.

Chapter and section numbers are of the NVM Express Base Specification 1.4. :class:`bellwire.bundled.nvme.Nvme`
joins the parts; the way of a command is: doorbells → controller → queues → admin or io → queues → interrupts.
"""
