"""Recognises a panic of Linux. The console's text is the only sign of it that the machine gets."""

from __future__ import annotations

_MARK = b"Kernel panic - not syncing"
_LONGEST = 1024


class PanicWatch:
    """Reads the console's output. ``message`` is the line of the first panic; empty if there was none."""

    def __init__(self) -> None:
        self.message = ""
        self._line = bytearray()

    def hear(self, text: bytes) -> None:
        """Take the next output of the console."""
        for byte in text:
            if byte not in b"\r\n":
                self._line.append(byte)
                del self._line[:-_LONGEST]
                continue
            at = self._line.find(_MARK)
            if at >= 0 and not self.message:
                self.message = self._line[at:].decode("ascii", "replace")
            self._line.clear()
