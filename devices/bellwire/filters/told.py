"""At debug level, a device's log has a line for each event: those of a filter ``trace``."""

from __future__ import annotations

import logging

from bellwire.filters.builtin.trace import Trace
from bellwire.filters.stack import Stack


class Telling(Trace, name="trace"):
    """A trace that a device has because of its logger's level. The device can do all that it can do without filters."""

    level = logging.DEBUG


def tell_at_debug(stack: Stack) -> None:
    """Put one in, if the device's logger is at debug level. Otherwise the device's paths stay as they are."""
    if stack.core.device.log.isEnabledFor(logging.DEBUG):
        stack.add(Telling())


def tell_no_more(stack: Stack) -> None:
    """Take it out, if there is one."""
    for _, each in list(stack):
        if isinstance(each, Telling):
            stack.remove(each)
