"""What the control API answers, beside devices. (Varlink needs these annotations as types, not as text.)"""

from typing import TypedDict

from asyncvarlink import TypedVarlinkErrorReply

INTERFACE = "org.bellwire.Manager"


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The call cannot be carried out."""

    class Parameters:
        """What went wrong, and what to do about it."""

        message: str
        hint: str


class GuestMemory(TypedDict):
    """A range of guest memory. ``shared``: the device reaches it in place; else by messages to the client."""

    address: int
    size: int
    readable: bool
    writable: bool
    shared: bool


class Happening(TypedDict):
    """One event of the stream."""

    time: float
    device: str
    kind: str
    fields: dict[str, str]


class FilterInPlace(TypedDict):
    """A filter of a device. ``report`` is what it has found, in JSON."""

    label: str
    name: str
    arguments: dict[str, str]
    report: str


class LogLine(TypedDict):
    """One line of a device's log, or several with a traceback."""

    time: float
    level: str
    text: str


class Outcome(TypedDict):
    """What a reload did, by the devices' names."""

    started: list[str]
    restarted: list[str]
    stopped: list[str]
    unchanged: list[str]
    failed: dict[str, str]


class Captured(TypedDict):
    """What a capture has so far. ``ended`` says why it has ended; it is empty while the capture goes on."""

    number: int
    messages: int
    events: int
    bytes: int
    ended: str


class File(TypedDict):
    """A configuration file that is in effect."""

    path: str
    content: str
