"""A worker as the manager runs it: one device, its listener, and a control socket on the device's own loop."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from enum import IntFlag
from pathlib import Path
from typing import Any

from bellwire import BellwireError, PciDevice
from bellwire.observer import Observer
from bellwire.register import Register
from bellwire.worker import Worker
from bellwired.find import find_device
from bellwired.logs import to_stderr_or_journal
from bellwired.manager import process, wire
from bellwired.manager.wire import Answer, Ask, Event, Spawn
from vfio_user import Capabilities

REFUSED = 78  # EX_CONFIG: no restart will help


def run_device(spawn: Spawn, listener: int, control: int) -> None:
    """The life of a worker, from just after the fork."""
    process.name(f"bw:{spawn.name}")
    to_stderr_or_journal(spawn.log_level, device=spawn.name)
    logging.getLogger("bellwire.worker").setLevel(logging.WARNING)  # of clients that come and go, the manager tells
    with socket.socket(fileno=listener) as listening, socket.socket(fileno=control) as channel:
        channel.setblocking(False)
        try:
            kind = find_device(spawn.device, [Path(folder) for folder in spawn.plugins])
            device = kind(**spawn.options)
        except BellwireError as error:
            hint = getattr(error, "hint", "")
            _tell(channel, Event("refused", {"error": f"{error}; {hint}" if hint else str(error)}))
            raise SystemExit(REFUSED) from None
        Serving(spawn, device, listening, channel).run()


class Serving:
    """A device at work, and the manager's questions about it."""

    def __init__(self, spawn: Spawn, device: PciDevice, listener: socket.socket, channel: socket.socket) -> None:
        self._device = device
        self._channel = channel
        self._worker = Worker(device, listener, observer=Reporter(channel), io_fd_entry_size=spawn.io_fd_entry)
        self._answers: dict[str, Callable[[], Any]] = {
            "ping": lambda: None,
            "reset": self._worker.served.reset,
            "registers": lambda: registers(device),
            "statistics": self._worker.served.statistics,
            "stop": self._worker.stop,
        }

    def run(self) -> None:
        """Serve until told to stop, or the manager has gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._worker.stop())
        self._worker.loop.watch(self._channel.fileno(), self._asked)
        self._worker.run(ready=lambda: _tell(self._channel, Event("ready", {})))

    def _asked(self) -> None:
        try:
            received = wire.receive(self._channel)
        except BlockingIOError:
            return
        if received is None:
            self._worker.loop.unwatch(self._channel.fileno())
            self._worker.stop()
            return
        ask = received[0]
        if not isinstance(ask, Ask):
            return
        answer = Answer(ask.number)
        do = self._answers.get(ask.what)
        try:
            if do is None:
                answer.error = f"a worker knows no {ask.what!r}"
            else:
                answer.value = do()
        except Exception as error:
            logging.getLogger("bellwire.worker").exception("%s failed", ask.what)
            answer.error = f"{type(error).__name__}: {error}"
        _tell(self._channel, answer)


class Reporter(Observer):
    """Passes on to the manager what happens to the device."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def connected(self, pid: int, uid: int) -> None:
        """A client has come."""
        self._say("connected", pid=pid, uid=uid)

    def introduced(self, client: Capabilities) -> None:
        """It has said what it can take."""
        self._say("introduced", **client.to_json())

    def mapped(self, maps: int, size: int) -> None:
        """It has changed its memory maps."""
        self._say("mapped", maps=maps, bytes=size)

    def left(self, reason: str) -> None:
        """It has gone."""
        self._say("left", reason=reason)

    def trouble(self, text: str) -> None:
        """Something was logged that an operator may want to see."""
        self._say("trouble", text=text)

    def _say(self, kind: str, **fields: Any) -> None:
        _tell(self._channel, Event(kind, fields))


def registers(device: PciDevice) -> list[dict[str, Any]]:
    """Every register as it stands, by name; no read hook is run."""
    found = []
    for index, plan in device.layout.bars.items():
        content = device.core.state.registers[index]
        for item in plan.placed:
            if isinstance(item, Register):
                value = item.load(content)
                found.append(
                    {
                        "name": item.name,
                        "bar": index,
                        "offset": item.offset,
                        "size": item.size,
                        "access": item.access.value,
                        "value": int(value),
                        "meaning": _meaning(item, value),
                    }
                )
    return found


def _meaning(item: Register[Any], value: int) -> str:
    kind = item.kind
    if kind is None:
        return ""
    try:
        member = kind(value)
    except ValueError:
        return "?"
    if isinstance(member, IntFlag):
        return "|".join(flag.name or hex(flag) for flag in member) or "0"
    return str(member.name)


def _tell(channel: socket.socket, message: Answer | Event) -> None:
    """A manager that does not listen shall not hold the device up."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionError):
        wire.send(channel, message)
