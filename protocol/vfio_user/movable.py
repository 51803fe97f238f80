"""What a session needs of a device that can migrate. The server implements :class:`Movable`."""

from __future__ import annotations

from typing import Protocol


class Movable(Protocol):
    """A device that can stand still, and give its state away or take one over. Methods may raise a VfioUserError."""

    pre_copy: bool
    """Whether it is worth the while to copy a part of the state while the device runs."""
    most: int
    """The most bytes of a state that :meth:`load` takes."""

    def awaits(self) -> bool:
        """Whether the device cannot run before it has got a state: it then begins in STOP."""

    def hold(self) -> None:
        """Let nothing of the device run from now on. After an error it runs as before."""

    def go(self) -> None:
        """Let the device run again; after :meth:`load`, for the first time with that state.

        After a VfioUserError it stands still as before. After another exception its state cannot be used.
        """

    def reset(self) -> None:
        """Let the device run again, after a reset."""

    def save(self, *, last: bool) -> bytes:
        """The state: all of it at first, then what has changed since. ``last`` is for a device that stands still."""

    def forget(self) -> None:
        """Saving has ended, or was given up: the next :meth:`save` gives all of the state."""

    def load(self, data: bytes) -> None:
        """Take over the state that another device's :meth:`save` gave, in one piece. The device stands still.

        A VfioUserError says why the state is refused. The device is then as before.
        """

    def inherit(self, *, loaded: bool) -> None:
        """Stand still from the start on, in the place of a process that has died while its device did.

        ``loaded``: the state that the process has left was loaded, and has not run yet.
        """
