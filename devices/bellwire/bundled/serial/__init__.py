"""serial: a 16550A on PCI. Its registers and its FIFOs are in files of their own."""

from bellwire.bundled.serial.device import Serial

__all__ = ["Serial"]
