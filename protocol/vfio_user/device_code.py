"""The boundary between a session and device code: any exception of the device's becomes an error reply."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from vfio_user.backend import Backend
from vfio_user.constants import Command
from vfio_user.errors import VfioUserError


class HookFailedError(VfioUserError):
    """Device code has raised an exception, which the backend has logged already."""


class DeviceCode:
    """Calls the device code of ``backend`` for a session."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def call(self, command: Command, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call device code. The backend logs its exception, and the client gets EIO."""
        try:
            return function(*arguments)
        except VfioUserError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 the boundary to device code
            raise self.failed(command, error) from None

    def failed(self, command: Command, error: BaseException) -> HookFailedError:
        """Log an error of device code, and return the error that the client gets."""
        self._backend.hook_failed(command, error)
        return HookFailedError(f"{command.name}: the device's own code failed", errno.EIO)
