"""The states of a device that migrates, and which of them lead to which (linux/vfio.h, enum vfio_device_mig_state)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from vfio_user.constants import DeviceState
from vfio_user.errors import VfioUserError

_ERROR, _STOP, _RUNNING = DeviceState.ERROR, DeviceState.STOP, DeviceState.RUNNING
_STOP_COPY, _RESUMING, _PRE_COPY = DeviceState.STOP_COPY, DeviceState.RESUMING, DeviceState.PRE_COPY
_ARCS: Mapping[DeviceState, tuple[DeviceState, ...]] = {
    _RUNNING: (_STOP, _PRE_COPY),
    _STOP: (_RUNNING, _STOP_COPY, _RESUMING),
    _STOP_COPY: (_STOP,),
    _RESUMING: (_STOP,),
    _PRE_COPY: (_RUNNING, _STOP_COPY),
}
_ENDS_ONLY = (_STOP_COPY, _PRE_COPY)
"""States that a way may begin or end with, and never passes through."""
STILL = frozenset((_ERROR, _STOP, _STOP_COPY, _RESUMING))
"""The states in which nothing of the device runs."""


def way(start: DeviceState, end: DeviceState, *, pre_copy: bool) -> tuple[DeviceState, ...]:
    """The shortest way: the states from behind ``start`` to ``end``, each by an arc of its own.

    Raises VfioUserError (EINVAL), which names both states, if there is none. ``pre_copy`` tells whether the device has
    that state.
    """
    lacking = {DeviceState.RUNNING_P2P, DeviceState.PRE_COPY_P2P} | (set() if pre_copy else {_PRE_COPY})
    if end in lacking:
        raise VfioUserError(f"device_state: from {start.name} to {end.name}, a state that this device does not have")
    if end is _ERROR:
        raise VfioUserError(f"device_state: from {start.name} to ERROR, which cannot be asked for")
    if end is start:
        return ()
    if start is _ERROR:
        raise VfioUserError(f"device_state: from ERROR to {end.name}: only DEVICE_RESET leads out of ERROR")
    ways: deque[tuple[DeviceState, ...]] = deque([()])
    seen = {start}
    while ways:
        found = ways.popleft()
        last = found[-1] if found else start
        if found and last in _ENDS_ONLY:
            continue
        for each in _ARCS.get(last, ()):
            if each is end and (start, end) != (_STOP_COPY, _PRE_COPY):
                return (*found, each)
            if each not in seen and each not in lacking:
                seen.add(each)
                ways.append((*found, each))
    raise VfioUserError(f"device_state: no way leads from {start.name} to {end.name}")
