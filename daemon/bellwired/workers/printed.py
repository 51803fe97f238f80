"""What device code prints in a worker: lines of the log."""

from __future__ import annotations

import io
import logging

LONGEST = 1 << 14  # characters without an end of line


class Printed(io.TextIOBase):
    """In place of a standard stream, which would hold the device up while nobody reads it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._begun = ""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Log all complete lines."""
        *lines, self._begun = (self._begun + text).split("\n")
        if len(self._begun) > LONGEST:
            lines.append(self._begun)
            self._begun = ""
        for line in lines:
            self._logger.info("%s", line)
        return len(text)

    def close(self) -> None:
        """Log an incomplete last line."""
        if self._begun:
            self.write("\n")
        super().close()
