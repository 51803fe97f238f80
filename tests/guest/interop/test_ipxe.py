"""iPXE, the firmware of network cards, drives virtio-net."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device, Served
from bellwired.guest.toolbox import Toolbox
from interop import payloads
from interop.hosts import GUEST, HOST, TAP, card, listening, tftp
from interop.machines import Serial, booted
from interop.page import Row
from virtio.namespace import Namespace

pytestmark = [pytest.mark.guest, pytest.mark.long]

ROM = "usr/share/qemu/pxe-virtio.rom"
HTTP = 80
SETTINGS = ("ifopen net0", f"set net0/ip {GUEST}", "set net0/netmask 255.255.255.0")


def over_http(files: dict[str, bytes]) -> Callable[[socket.socket], None]:
    """Answer one GET of a file (RFC 9112)."""

    def answer(far: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += far.recv(4096)
        content = files[request.split()[1].decode().removeprefix("/")]
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        far.sendall(head.encode() + content)

    return answer


def reach_prompt(serial: Serial) -> str:
    """Press Ctrl-B whenever iPXE offers it: it may look for keys too late. The version that it says."""
    said = ""
    while True:
        found = serial.wait_for("Ctrl-B|iPXE> ")
        said += found.string[: found.end()]
        if found[0] != "Ctrl-B":
            break
        serial.type("\x02")
    version = re.search(r"iPXE\x1b?[^\d(]* (\d[\w.+]*)", said)
    assert version, said
    return version[1]


@pytest.mark.parametrize("scheme", ["http", "tftp"])
def test_it_boots_from_the_network(
    row: Row,
    tools: Toolbox,
    namespace: Namespace,
    tmp_path: Path,
    serve: Callable[[Device], Served],
    scheme: str,
) -> None:
    """a script, which loads and starts a program"""
    program = payloads.network_program(tmp_path)
    script = f"#!ipxe\nchain {scheme}://{HOST}/program\n".encode()
    files = {"script": script, "program": program}
    served = serve(Device("virtio-net", card(namespace), {"romfile": str(tools.root / ROM)}))
    namespace.address(TAP, HOST)
    with (
        listening(namespace, HTTP, over_http(files)) if scheme == "http" else tftp(namespace, files),
        booted(tools, tmp_path, [served], "-machine", "graphics=off") as serial,
    ):
        row.against(f"QEMU {tools.qemu_version}", f"iPXE {reach_prompt(serial)}")
        for line in (*SETTINGS, f"chain {scheme}://{HOST}/script"):
            serial.type_slowly(line)
            if line in SETTINGS:
                serial.wait_for("iPXE> ")
        found = serial.wait_for(r"network program: crc ([0-9a-f]{8})")[1]
    assert int(found, 16) == payloads.crc_of_program(program)
    row.tell(f"{payloads.LOADED >> 10} KiB, their CRC-32 is right")
    log = served.log
    assert not re.search("ERROR|Traceback", log), log
