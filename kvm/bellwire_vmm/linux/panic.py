"""A Linux that dies says so on its console, and that is all that a machine hears of it."""

from __future__ import annotations

_MARK = b"Kernel panic - not syncing"
_LONGEST = 1024


class PanicWatch:
    """Listens to a console. ``message`` is the line of the first panic, empty while there was none."""

    def __init__(self) -> None:
        self.message = ""
        self._line = bytearray()

    def hear(self, text: bytes) -> None:
        """What the console says next."""
        for byte in text:
            if byte not in b"\r\n":
                self._line.append(byte)
                del self._line[:-_LONGEST]
                continue
            at = self._line.find(_MARK)
            if at >= 0 and not self.message:
                self.message = self._line[at:].decode("ascii", "replace")
            self._line.clear()
