"""The interval timer, an i8254 that KVM emulates: what moves with the machine."""

from __future__ import annotations

import ctypes

from bellwire_vmm.errors import StateError
from kvm_ioctls import PitState2, Vm


class Timer:
    """The i8254 of ``vm`` as a `part.Part`."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def state(self) -> bytes:
        """The three channels, as KVM gives them."""
        return bytes(self._vm.get_pit2())

    def set_state(self, state: bytes) -> None:
        """Set the channels. Raises StateError for another number of bytes."""
        if len(state) != ctypes.sizeof(PitState2):
            raise StateError(f"a timer of {len(state)} bytes, expected {ctypes.sizeof(PitState2)}")
        self._vm.set_pit2(PitState2.from_buffer_copy(state))
