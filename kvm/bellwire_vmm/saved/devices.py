"""The devices of a machine that is saved or moved: stopped, read, written, and started again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import StateError
from bellwire_vmm.saved.sections import LARGEST
from bellwire_vmm.vmm import Machine
from vfio_user import DeviceState, MigrationFlags, RemoteError, VfioUserError

_CHUNK = 1 << 20


def check(machine: Machine) -> None:
    """Raise StateError, naming the slot, unless all devices can be saved."""
    for device in machine.devices:
        with _named(device):
            if not device.peer.client.migration.flags() & MigrationFlags.STOP_COPY:
                raise StateError(f"slot {device.slot}: {device.identity['id']} offers no migration, so it stays here")


def stop(machine: Machine) -> None:
    """Stop all devices, and wait until what they have sent is with KVM. The vCPUs have stopped.

    After a StateError some may have stopped: `start` starts these again.
    """
    for device in machine.devices:
        with _named(device):
            device.peer.client.migration.set_state(DeviceState.STOP_COPY)
        device.settle()


def start(machine: Machine) -> None:
    """Start all devices. Raises StateError, naming the slot, for the first that does not start."""
    failed: StateError | None = None
    for device in machine.devices:
        try:
            with _named(device):
                device.peer.client.migration.set_state(DeviceState.RUNNING)
            device.ask_again()
        except StateError as error:
            failed = failed or error
    if failed is not None:
        raise failed


@contextlib.contextmanager
def stopped(machine: Machine) -> Iterator[None]:
    """A context in which the devices of a stopped machine stand still. They start again if it raises.

    Raises StateError, with both reasons, if one then does not start.
    """
    try:
        stop(machine)
        yield
    except BaseException as error:
        try:
            start(machine)
        except StateError as second:
            if isinstance(error, Exception):
                raise StateError(f"{error}; and a device does not run again: {second}") from error
        raise


def read(device: ProxyDevice) -> bytes:
    """The state of a stopped device."""
    data = bytearray()
    with _named(device):
        while part := device.peer.client.migration.read(_CHUNK):
            data += part
            if len(data) > LARGEST:
                raise StateError(f"slot {device.slot}: the device's state has more than {LARGEST} bytes")
    return bytes(data)


def write(device: ProxyDevice, data: bytes) -> None:
    """Give a device the state that another one had. It stands still afterwards, until `start`."""
    with _named(device):
        migration = device.peer.client.migration
        migration.set_state(DeviceState.RESUMING)
        migration.write(data)
        migration.set_state(DeviceState.STOP)


@contextlib.contextmanager
def _named(device: ProxyDevice) -> Iterator[None]:
    """Name the slot in errors of a device."""
    try:
        yield
    except VfioUserError as error:
        why = "; its server's log says why" if isinstance(error, RemoteError) else ""
        raise StateError(f"slot {device.slot}, {device.identity['id']}: {error}{why}") from None
