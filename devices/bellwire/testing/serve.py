"""Serve a device from a test or a script to a real client: QEMU, another VMM, or a client of the test."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar, cast

from bellwire.device import PciDevice
from bellwire.filters import Stack
from bellwire.serve.worker import Worker
from bellwire.testing.live import Live
from bellwire.unix_sockets import Bound

BACKLOG = 128
PATIENCE = 30.0  # seconds
Device = TypeVar("Device", bound=PciDevice)
Result = TypeVar("Result")


class Serving(Generic[Device]):
    """A device that is being served, and its socket. Made by :func:`serve`."""

    def __init__(self, path: Path, worker: Worker, device: Device) -> None:
        self.path = path
        """The Unix socket that a client connects to."""
        self.device = device
        """The device. It runs on a thread of its own, so look at it only while no client uses it."""
        self._worker = worker
        self._ended: Future[None] = Future()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> Device:
        """The device as the test's thread may use it at any time: see :class:`bellwire.testing.live.Live`."""
        return cast("Device", Live(self.call, self.device))

    @property
    def filters(self) -> Stack:
        """The filters between client and device. Put one in by ``serving.call(serving.filters.add, filter)``."""
        return self._worker.served.filters

    def call(self, function: Callable[..., Result], *arguments: Any, patience: float = PATIENCE) -> Result:
        """Run ``function(*arguments)`` on the device's thread, between two turns of its loop, and return its result.

        The device has handled what its client has written and rung until now. What ``function`` raises comes out of
        the call. A TimeoutError if the device's thread has not come to it within ``patience`` seconds, and a
        RuntimeError if it has ended.
        """
        if threading.current_thread() is self._thread:
            return function(*arguments)
        done: Future[Result] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(function(*arguments))
                except BaseException as error:  # noqa: BLE001 the thread that waits for us raises it
                    done.set_exception(error)

        self._worker.loop.hand_over(run)
        awaited: list[Future[Any]] = [done, self._ended]
        wait(awaited, patience, FIRST_COMPLETED)
        if done.done():
            return done.result()
        done.cancel()
        if self._ended.done():
            raise RuntimeError(f"{self.device.name} is no longer served")
        raise TimeoutError(f"{self.device.name} has been busy for {patience:g} s{self._whereabouts()}")

    def reset(self) -> None:
        """Reset the device as DEVICE_RESET does. Rings from before the reset are dropped."""
        self.call(self._worker.served.reset)

    def statistics(self, *, patience: float = PATIENCE) -> dict[str, int]:
        """What the device has counted since its start: reads, writes, rings, interrupts, DMA, errors."""
        return self.call(self._worker.served.statistics, patience=patience)

    def _run(self, ready: threading.Event, failed: list[BaseException]) -> None:
        try:
            self._worker.run(ready.set)
        except BaseException as error:  # noqa: BLE001 whatever it is, the thread that waits for us raises it
            failed.append(error)
        self._ended.set_result(None)
        ready.set()

    def _whereabouts(self) -> str:
        """Where the device's code is at present."""
        number = self._thread.ident if self._thread else None
        frame = sys._current_frames().get(number) if number else None
        if frame is None:
            return ""
        code = frame.f_code
        return f", in {code.co_qualname} ({code.co_filename}:{frame.f_lineno})"


@contextlib.contextmanager
def serve(
    device: Device | type[Device], *, path: Path | str | None = None, **options: Any
) -> Iterator[Serving[Device]]:
    """Serve ``device`` for the length of a ``with`` block, on the socket ``path`` or on one in a temporary folder.

    ``device`` is an instance, or a class that is made with ``options``. Clients are served one after the other. An
    error of ``setup`` or ``reset`` comes out of the ``with`` statement. At the end of the block the client is
    disconnected, the device's ``close`` has run, and the thread and the socket are gone. If a hook does not end, a
    TimeoutError names it.
    """
    instance: Device = device(**options) if isinstance(device, type) else device
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="bellwire-"))
        where = Path(folder, "socket") if path is None else Path(path)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        stack.callback(Bound(listener, where, BACKLOG).remove)
        worker = Worker(instance, listener)
        serving = Serving(where, worker, instance)
        ready = threading.Event()
        failed: list[BaseException] = []
        thread = threading.Thread(
            target=serving._run, args=(ready, failed), name=f"bellwire {instance.name}", daemon=True
        )
        serving._thread = thread
        thread.start()
        try:
            ready.wait()
            if not failed:
                yield serving
        finally:
            worker.stop()
            thread.join(PATIENCE)
            if thread.is_alive():
                raise TimeoutError(f"{instance.name} does not end{serving._whereabouts()}")
        if failed:
            raise failed[0]
