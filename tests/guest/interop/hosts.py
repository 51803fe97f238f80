"""What is at the other side of a network card: a namespace with a tap, and servers in it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from virtio.namespace import Namespace

TAP, HOST, GUEST = "bwinterop0", "10.98.7.1", "10.98.7.2"
MAC = "52:54:00:12:34:56"
BLOCK = 512
READ_REQUEST, DATA, ACK, ERROR = 1, 3, 4, 5  # RFC 1350, section 5
TRIES = 10


def card(namespace: Namespace) -> dict[str, Any]:
    """Options of a virtio-net whose tap is in the namespace. The tap has no address before the device runs."""
    return {"tap": TAP, "namespace": namespace.name, "mac": MAC}


@contextlib.contextmanager
def listening(namespace: Namespace, port: int, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve TCP connections that come through the namespace's interfaces."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            serve(self.request)

    with _running(namespace, lambda: socketserver.ThreadingTCPServer(("0.0.0.0", port), Handler)):
        yield


@contextlib.contextmanager
def tftp(namespace: Namespace, files: Mapping[str, bytes]) -> Iterator[None]:
    """Serve files by TFTP (RFC 1350), without options."""

    class Handler(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            request, _ = self.request
            if request[:2] == struct.pack(">H", READ_REQUEST):
                name = request[2:].partition(b"\0")[0].decode()
                namespace.inside(lambda: _send(self.client_address, files.get(name)))

    with _running(namespace, lambda: socketserver.ThreadingUDPServer(("0.0.0.0", 69), Handler)):
        yield


def _send(client: Any, content: bytes | None) -> None:
    """One file: a block goes out when the one before it is acknowledged."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.connect(client)
        ours.settimeout(1)
        if content is None:
            ours.send(struct.pack(">HH", ERROR, 1) + b"no such file\0")
            return
        for number in range(len(content) // BLOCK + 1):
            at = number * BLOCK
            block = struct.pack(">HH", DATA, number + 1 & 0xFFFF)
            _acknowledged(ours, block + content[at : at + BLOCK], struct.pack(">HH", ACK, number + 1 & 0xFFFF))


def _acknowledged(ours: socket.socket, block: bytes, wanted: bytes) -> None:
    for _ in range(TRIES):
        ours.send(block)
        with contextlib.suppress(TimeoutError):
            while ours.recv(BLOCK) != wanted:
                pass
            return
    raise TimeoutError(f"no {wanted!r}")


@contextlib.contextmanager
def _running(namespace: Namespace, make: Callable[[], socketserver.BaseServer]) -> Iterator[None]:
    with namespace.inside(make) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
