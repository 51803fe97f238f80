"""iperf3 at both ends: a server here in a network namespace, the client in the guest."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from attached import end, with_us
from bellwired.guest.toolbox import Toolbox

PROGRAM = "usr/bin/iperf3"
DURATION = 2  # seconds
WAYS = {"guest to host": "", "host to guest": "--reverse"}


class Flow(NamedTuple):
    """What one end has received, and what the other had to send again."""

    megabits: float
    """A second."""
    retransmits: int


def script(host: str, duration: int = DURATION) -> str:
    """Run the client once for each of :data:`WAYS`; what it prints is for :func:`flows`."""
    return "\n".join(f"iperf3 -J -c {host} -t {duration} {option} || exit 7" for option in WAYS.values()) + "\n"


def flows(output: str) -> dict[str, Flow]:
    """By the way they went; an AssertionError when the client has complained."""
    decoder = json.JSONDecoder()
    found: dict[str, Flow] = {}
    for way in WAYS:
        output = output[output.index("{") :]
        report, size = decoder.raw_decode(output)
        output = output[size:]
        assert "error" not in report, report["error"]
        total = report["end"]
        found[way] = Flow(total["sum_received"]["bits_per_second"] / 1e6, total["sum_sent"]["retransmits"])
    return found


@contextlib.contextmanager
def server(tools: Toolbox, namespace: str = "") -> Iterator[None]:
    """A server that listens, in a network namespace by name or path, or in ours."""
    words = [*tools.command(PROGRAM), "--server", "--forceflush"]
    if namespace:
        words = ["nsenter", f"--net={Path('/var/run/netns', namespace)}", *words]
    with subprocess.Popen(
        with_us(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "listening" not in said:
                line = process.stdout.readline()
                assert line, f"iperf3 does not serve: {said}"
                said += line
            yield
        finally:
            end(process)
