"""How a guest may access a register. The short words are those of register descriptions (Simics DML, SystemRDL)."""

from __future__ import annotations

from enum import Enum


class Access(Enum):
    """What a guest's read and write do to a register. The device itself may always read and assign it."""

    RW = "rw"
    """Reads give the stored value; writes store."""
    RO = "ro"
    """Reads give the stored value; writes are dropped."""
    WO = "wo"
    """Writes store; reads give the BAR's ``fill``."""
    W1C = "w1c"
    """Reads give the stored value; bits written as one are cleared."""
    W1S = "w1s"
    """Reads give the stored value; bits written as one are set."""
    RC = "rc"
    """A read gives the stored value and clears the bytes read; writes are dropped."""
    CONSTANT = "constant"
    """Reads always give the reset value; the device may not assign it either."""
    RESERVED = "reserved"
    """Reads give the BAR's ``fill``; writes are dropped. Nothing is logged."""
    UNIMPLEMENTED = "unimplemented"
    """The real part has it, and the model lacks it: reads give the reset value, writes are dropped, and accesses are
    logged at a limited rate. The log shows that a driver needs it."""

    @property
    def takes_writes(self) -> bool:
        """Whether a guest's write changes anything."""
        return self in _WRITABLE


_WRITABLE = frozenset({Access.RW, Access.WO, Access.W1C, Access.W1S})
