"""A stock Linux drives our serial port with the driver that it has for all of them."""

from __future__ import annotations

import hashlib
import os
import re
import select
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attached import JUDGING, Device, Served
from docs.documents import DOCS, blocks
from linux import Outcome
from rendezvous import joined

pytestmark = pytest.mark.guest

PATIENCE = 240.0  # seconds: the guest boots meanwhile, and prints its console character by character
SIZE = 8 << 10
FIND = """
port=$(dmesg | sed -n 's/.*0000:00:0.*: \\(ttyS[0-9]*\\) at I\\/O .* is a 16550A$/\\1/p')
"""
EXCHANGE = f"""{FIND}
echo $port
state() {{ stty -F /dev/$port raw; sed -n "s/^${{port#ttyS}}: uart:16550A .* tx:/tx:/p" /proc/tty/driver/serial; }}
stty -F /dev/$port 115200 raw -echo crtscts clocal
exec 3<>/dev/$port
echo ready >&3
head -c {SIZE} <&3 >/file
sha256sum </file
cat /file >&3
state
echo bye >&3
n=0; while state | grep -q CD; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done
state
"""


def test_bytes_go_both_ways_at_the_pace_of_the_slower(
    linux: Callable[..., Outcome], serve: Callable[[Device], Served], tmp_path: Path
) -> None:
    port = serve(Device("serial", {"backend": f"unix:{tmp_path / 'line'}"}, flags=JUDGING))
    data = os.urandom(SIZE)

    def talk() -> bytes:
        with joined(tmp_path / "line") as far, far.makefile("rb") as heard:
            assert heard.readline() == b"ready\n"
            far.sendall(data)
            back = heard.read(SIZE)
            assert heard.readline() == b"bye\n"
            return back

    with ThreadPoolExecutor(1) as talker:
        talked = talker.submit(talk)
        outcome = linux(EXCHANGE, port)
        back = talked.result()
    name, digest, _, *states = outcome.output.split()
    assert outcome.status == 0
    assert re.fullmatch(r"ttyS\d", name)
    assert digest == hashlib.sha256(data).hexdigest()
    assert back == data
    with_us, without_us = states[:3], states[3:]
    assert with_us == [f"tx:{SIZE + 6}", f"rx:{SIZE}", "RTS|CTS|DTR|DSR|CD"]
    assert without_us == [f"tx:{SIZE + 10}", f"rx:{SIZE}", "RTS|DTR"]
    assert port.mistakes == []


UNHANDLED = f"""{FIND}
irq=$(cat /sys/class/tty/$port/irq)
stty -F /dev/$port 115200 raw -echo clocal
exec 3<>/dev/$port
n=0; until [ $(sed -n "s/^unhandled //p" /proc/irq/$irq/spurious) -ge 20 ]; do
    n=$((n + 1)); [ $n -lt 200 ] || exit 9
    echo hello >&3; usleep 50000
done
"""


@pytest.mark.parametrize("fault", ["spurious-irq", "irq-storm:at=3,count=1000"])
def test_an_interrupt_of_the_line_without_a_cause_is_one_that_linux_does_not_handle(
    linux: Callable[..., Outcome], fault: str
) -> None:
    assert linux(UNHANDLED, Device("serial", {"backend": "null"}, flags=("--filter", fault))).status == 0


GREET = f"""{FIND.replace("16550A", "16450")}
stty -F /dev/$port 115200 raw -echo clocal
exec 3<>/dev/$port
echo ready >&3
head -n 1 <&3
echo bye >&3
exec 3>&-  # this waits until all is sent; the end of a session does not
"""


def test_the_port_that_the_tutorial_builds_is_one_to_linux(
    linux: Callable[..., Outcome], serve: Callable[[Device], Served], tmp_path: Path
) -> None:
    source = tmp_path / "tutorial.py"
    parts = (block.text for block in blocks(DOCS / "writing-a-device.md", "python"))
    source.write_text("\n".join(part for part in parts if 'name="slow"' not in part))  # an edit of the device Slow
    port = serve(Device(f"{source}:smallserial", {"backend": f"unix:{tmp_path / 'line'}"}))

    def talk() -> None:
        with joined(tmp_path / "line") as far, far.makefile("rb") as heard:
            assert heard.readline() == b"ready\n"
            far.sendall(b"hello, Linux\n")
            assert heard.readline() == b"bye\n"

    with ThreadPoolExecutor(1) as talker:
        talked = talker.submit(talk)
        outcome = linux(GREET, port)
    talked.result()
    assert outcome.status == 0
    assert outcome.output.strip() == "hello, Linux"


class Terminal:
    """Somebody at a terminal, who reads what comes up and types."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self.screen = b""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.screen:
            ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} does not come up:\n{self.screen.decode(errors='replace')}"
            self.screen += os.read(self._fd, 4096)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def terminal(serve: Callable[[Device], Served], tmp_path: Path) -> Iterator[tuple[Served, Terminal]]:
    port = serve(Device("serial", {"backend": f"pty:{tmp_path / 'tty'}"}))
    terminal = Terminal(tmp_path / "tty")
    yield port, terminal
    terminal.close()


SHELL = """
tty </dev/console
setsid sh -i </dev/console >/dev/console 2>&1
cat /said
"""


def test_it_is_the_guests_console(linux: Callable[..., Outcome], terminal: tuple[Served, Terminal]) -> None:
    port, console = terminal

    def sit_there() -> None:
        console.wait_for(b"Linux version")  # what the kernel printed before it found the port, too
        console.wait_for(b"# ")
        console.type("echo $((6*7)) is the answer | tee /said\n")
        console.wait_for(b"\n42 is the answer")
        console.type("exit\n")

    with ThreadPoolExecutor(1) as visitor:
        seen = visitor.submit(sit_there)
        outcome = linux(SHELL, port, append="console=ttyS1")
        seen.result()
    assert outcome.status == 0
    assert outcome.output.splitlines()[-1] == "42 is the answer"
