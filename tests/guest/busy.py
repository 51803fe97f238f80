"""A Linux guest that uses all its devices at the same time, and checks every byte, until it is told to stop."""

from __future__ import annotations

import re
import shlex
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bellwired.guest.errors import MachineError
from bellwired.guest.machine import Machine

PATIENCE = 120.0  # seconds from the word to stop to the last program's end
SILENCE = 5.0  # seconds without an answer until the shell is asked again
FIO = "usr/bin/fio"
IPERF = "usr/bin/iperf3"
MODULES = ["nvme", "virtio_blk", "virtio_net", "virtio_console"]
JOB = "--ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=8 --size=4M --io_size=12M --verify=crc32c"
SHELL = "while :; do sh -c 'stty raw -echo; touch /shell; sh | cat' </dev/hvc0 >/dev/hvc0 2>/dev/null; done"
UNTIL = "while [ ! -e /stop ]; do {} || exit 1; echo round; done"
WRONG = re.compile(
    r"(nvme|virtio|vda|hvc|eth0|chaos).*(error|timeout|timed out|reset|abort|needs|fault|fail)|I/O error|Oops|BUG:|"
    r"Call Trace|blocked for more than",
    re.IGNORECASE,
)


def programs(host: str, gives: int, takes: int) -> dict[str, str]:
    """The guest's programs, by what they use. Each prints ``round`` after a round in which all was right."""
    disks = {"nvme": "/dev/nvme0n1", "virtio-blk": "/dev/vda"}
    fio = {name: f"/{FIO} --name=x --filename={path} {JOB} --verify_fatal=1 >&2" for name, path in disks.items()}
    same = '[ "$(sha256sum </file | cut -c 1-64)" = "$(cat /sum)" ]'
    copy = f"nc {host} {gives} >/file && nc {host} {takes} </file >/sum && {same}"
    # Its server opens its port anew after each test, and resets a connection that comes meanwhile.
    flow = f"/{IPERF} -c {host} -t 3 >&2"
    return fio | {"iperf3": f"{{ {flow} || {{ sleep 2; {flow}; }}; }}", "transfer": copy}


class Busy:
    """Uses the devices of ``machine`` from now on; ``console`` is the host's end of its shell's console."""

    def __init__(self, machine: Machine, console: Path, uses: dict[str, str]) -> None:
        self._machine = machine
        self._console = console
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(len(uses) + 1)
        machine.run("dmesg -c >/dev/null", check=True)
        machine.run(f"setsid sh -c {shlex.quote(SHELL)} >/dev/null 2>&1 &", check=True)
        machine.run("until [ -e /shell ]; do usleep 10000; done", check=True, timeout=PATIENCE)
        self._uses: dict[str, Future[int]] = {
            name: self._threads.submit(self._run, UNTIL.format(f"{{ {use}; }}")) for name, use in uses.items()
        }
        self._uses["shell"] = self._threads.submit(self._talk)

    @property
    def failed(self) -> bool:
        """Whether a use has ended already: with an error, since nothing has told it to stop."""
        return any(use.done() for use in self._uses.values())

    def stop(self) -> dict[str, int]:
        """Let the programs end their rounds. How many each has done; an AssertionError says which has failed."""
        self._over.set()
        self._machine.run("touch /stop", check=True)
        rounds, wrong = {}, []
        for name, use in self._uses.items():
            try:
                rounds[name] = use.result(PATIENCE)
            except (AssertionError, TimeoutError, MachineError) as error:
                wrong.append(f"{name}: {error!r}")
        self._threads.shutdown(wait=False)
        said = self._machine.run("dmesg", check=True).stdout.decode(errors="replace")
        wrong += [line for line in said.splitlines() if WRONG.search(line)]
        assert not wrong, "\n".join(wrong)
        for name in ("edu_rounds", "bell_rounds", "faults", "longest_read"):
            path = f"/sys/module/chaos/parameters/{name}"
            rounds[name] = int(self._machine.run(["cat", path], check=True).stdout)
        assert rounds["faults"] == 0
        return rounds

    def _run(self, script: str) -> int:
        done = self._machine.run(script)
        rounds = done.stdout.decode().count("round")
        assert done.status == 0, f"failed in round {rounds + 1}: {done.stdout[-500:]!r} {done.stderr[-2000:]!r}"
        return rounds

    def _talk(self) -> int:
        """Have the shell calculate. A host whose end of the line has gone connects again, and asks again."""
        number = 0
        try:
            while not self._over.is_set():
                number += 1
                self._ask(f"echo {number} $(({number} * {number}))\n", f"{number} {number * number}")
        finally:
            if self._line is not None:
                self._line.close()
        return number

    _line: socket.socket | None = None
    _heard = b""

    def _ask(self, question: str, answer: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if self._line is None:
                    self._line = socket.socket(socket.AF_UNIX)
                    self._line.settimeout(SILENCE)
                    self._line.connect(str(self._console))
                    self._heard = b""
                self._line.sendall(question.encode())
                while True:
                    while b"\n" not in self._heard:
                        data = self._line.recv(4096)
                        if not data:
                            raise ConnectionResetError
                        self._heard += data
                    line, _, self._heard = self._heard.partition(b"\n")
                    if line.decode().strip() == answer:
                        return
                    first, _, second = line.decode().strip().partition(" ")  # an earlier one, asked twice
                    assert first.isdecimal(), (question, line, self._heard)
                    assert int(first) < int(answer.split()[0]), (question, line)
                    assert second == str(int(first) ** 2), (question, line)
            except TimeoutError:
                continue
            except OSError:
                if self._line is not None:
                    self._line.close()
                    self._line = None
                time.sleep(0.01)
        raise AssertionError(f"the shell does not answer {question!r}")
