"""What a fatal signal does to ``bellwire vmm``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signals_end_it() -> Iterator[None]:
    """Handle fatal signals: restore the terminal, disconnect from the devices, and remove a socket of its own."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            if signal.getsignal(number) is end:  # a guest that has left ignores SIGUSR1 from then on
                signal.signal(number, handler)
