"""serial: a 16550A, with what its registers say and its FIFOs in files of their own."""

from bellwire.bundled.serial.device import Serial

__all__ = ["Serial"]
