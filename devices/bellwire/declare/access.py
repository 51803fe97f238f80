"""How a guest may touch a register: the field's own short words (as in Simics DML and SystemRDL)."""

from __future__ import annotations

from enum import Enum


class Access(Enum):
    """What a guest's read and write do to a register. The device itself may always read and assign it."""

    RW = "rw"
    """Reads give the stored value, writes store."""
    RO = "ro"
    """Reads give the stored value, writes are dropped."""
    WO = "wo"
    """Writes store, reads give the BAR's ``fill``."""
    W1C = "w1c"
    """Bits written as one are cleared."""
    W1S = "w1s"
    """Bits written as one are set."""
    RC = "rc"
    """A read gives the stored value and clears the bytes read; writes are dropped."""
    CONSTANT = "constant"
    """Reads give the reset value, always: not even the device may assign it."""
    RESERVED = "reserved"
    """Reads give the BAR's ``fill``, writes are dropped, in silence."""
    UNIMPLEMENTED = "unimplemented"
    """Documented for the real part and not modelled yet: reads give the reset value, writes are dropped, and
    each access is logged (at a limited rate), so that a driver that needs it is noticed."""

    @property
    def takes_writes(self) -> bool:
        """Whether a guest's write changes anything."""
        return self in _WRITABLE


_WRITABLE = frozenset({Access.RW, Access.WO, Access.W1C, Access.W1S})
