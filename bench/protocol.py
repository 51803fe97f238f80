"""The cost of a message without a VM: one C client, with the device in Python and the device in C."""

from __future__ import annotations

import socket
import struct

from bench.processes import ADAPTIVE, PYTHON, TIMED, C, cpus, output, serving
from bench.samples import Results

PART = "protocol"
_HEAD = struct.Struct("<24sQ")


def measure(results: Results, *, rounds: int, count: int) -> None:
    """Measure every operation, with client and device on one CPU and on two."""
    available = cpus()
    places = {"one CPU": (available[0], available[0]), "two CPUs": (available[0], available[-1])}
    for number in range(rounds):
        for place, (client, device) in places.items():
            subjects = [PYTHON, C, *([ADAPTIVE] if client != device else [])]
            turn = number % len(subjects)
            for subject in subjects[turn:] + subjects[:turn]:
                with serving(subject, device) as served:
                    found = timed(served.sock, count, client)
                if subject != C:
                    with serving(subject, device, TIMED) as served:
                        found["ring to hook"] = timed(served.sock, count // 4, client)["ring to hook"]
                for operation, samples in found.items():
                    results.add(PART, f"{operation}, {place}", subject, "µs", samples)


def timed(sock: socket.socket, count: int, cpu: int | None = None) -> dict[str, list[float]]:
    """The µs of each operation, measured ``count`` times or a fraction of that, with the client on ``cpu``."""
    data = output("client", cpu, str(sock.fileno()), str(max(16, count)), fds=(sock.fileno(),))
    found = {}
    while data:
        name, samples = _HEAD.unpack_from(data)
        end = _HEAD.size + 8 * samples
        found[name.rstrip(b"\0").decode()] = [ns / 1000 for ns in struct.unpack(f"<{samples}Q", data[_HEAD.size : end])]
        data = data[end:]
    return found
