"""Filters: they stand between guest and device, and look at events, or change, delay, drop and answer them.

See docs/filters.md. Everything that the author of a filter imports is here.
"""

from bellwire.filters.argument import Argument, Duration
from bellwire.filters.events import (
    Client,
    DmaRange,
    DmaRead,
    DmaView,
    DmaWrite,
    Event,
    Hook,
    Interrupt,
    Read,
    Reset,
    Ring,
    Write,
)
from bellwire.filters.filter import Filter
from bellwire.filters.place import Place
from bellwire.filters.stack import FilterError, Stack

__all__ = [
    "Argument",
    "Client",
    "DmaRange",
    "DmaRead",
    "DmaView",
    "DmaWrite",
    "Duration",
    "Event",
    "Filter",
    "FilterError",
    "Hook",
    "Interrupt",
    "Place",
    "Read",
    "Reset",
    "Ring",
    "Stack",
    "Write",
]
