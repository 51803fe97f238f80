"""An open file descriptor with an owner."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import Self


class Handle:
    """Owns `fd` until `close()`, which may be called twice, or until the end of its `with` block.

    The kernel keeps a VM alive until the last of its own and its vCPUs' descriptors is closed, so the order
    in which they are closed does not matter.
    """

    fd: int = -1

    def __init__(self, fd: int):
        self.fd = fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed. Every request on it then fails with EBADF."""
        return self.fd < 0

    def fileno(self) -> int:
        """Return the descriptor, for `select` and its like."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fd}>"
