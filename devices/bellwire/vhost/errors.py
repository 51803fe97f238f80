"""What can go wrong with a back end."""

from __future__ import annotations

from bellwire.errors import BellwireError


class BackendError(BellwireError):
    """The back end lacks something, or has refused a request. The connection can go on."""


class BackendLost(BackendError):
    """The back end has gone, does not answer in time, or breaks the protocol. The connection is closed."""
