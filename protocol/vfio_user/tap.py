"""A tapped channel: each message that comes or goes is shown to somebody, as its bytes.

A session whose channel is not tapped pays nothing for this: no code asks whether there is a tap. Instead, the session
changes its channel for a tapped one, which shares the state of the other, and back again. Both can be done while a
client is connected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vfio_user.channel import PREFIX_SIZE, Channel, T
from vfio_user.loan import Loan
from vfio_user.message import Message

Piece = bytes | bytearray | memoryview


class Tap(Protocol):
    """Is shown messages. The pieces are valid until the method returns, and together are one whole message."""

    def received(self, pieces: Sequence[Piece], fds: int) -> None:
        """The peer has sent this message, with that many descriptors. It is not handled yet."""

    def sent(self, pieces: Sequence[Piece], fds: int) -> None:
        """This message is about to be sent to the peer, with that many descriptors."""


class TappedChannel(Channel):
    """``channel`` with a ``tap``. Use one of the two at a time: they have one socket, one buffer and one position."""

    def __init__(self, channel: Channel, tap: Tap) -> None:
        self.__dict__ = channel.__dict__
        self._tap = tap
        self._plain = channel

    def untapped(self) -> Channel:
        """The channel without the tap, of which nothing is left. This one must not be used any more."""
        channel = self._plain
        del self._tap, self._plain
        return channel

    def lend(self) -> Loan | None:
        """Nothing: each read of a register must be shown too."""
        return None

    def recall(self, known: Mapping[bytes, T]) -> tuple[bytes, T, memoryview] | None:
        """As :meth:`Channel.recall`."""
        found = super().recall(known)
        if found is not None:
            _, _, data = found
            self._tap.received((self._view[self.start - PREFIX_SIZE - len(data) : self.start],), 0)
        return found

    def send_whole(self, message: bytes, listening: bool = True) -> None:
        """As :meth:`Channel.send_whole`."""
        self._tap.sent((message,), 0)
        super().send_whole(message, listening)

    def _send_pieces(self, pieces: list[Piece], size: int, fds: Sequence[int], name: str, listening: bool) -> None:
        self._tap.sent(pieces, len(fds))
        super()._send_pieces(pieces, size, fds, name, listening)

    def _parse(self) -> Message | None:
        start = self.start
        message = super()._parse()
        if message is not None:
            self._tap.received((self._view[start : self.start],), len(message.fds))
        return message


def tapped(channel: Channel, tap: Tap | None) -> Channel:
    """``channel`` with ``tap`` in place of the tap that it may have had; without one, if ``tap`` is None."""
    plain = channel.untapped() if isinstance(channel, TappedChannel) else channel
    return plain if tap is None else TappedChannel(plain, tap)
