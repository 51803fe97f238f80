"""Parcels in files: a descriptor is stored as what it is, a memory file with its contents.

``python -m operating.parcel_samples FILE``, in the folder of the tests, makes the sample of this version.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import stat
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from bellwired.workers.parcel import Parcel
from operating.fd_keeper import FdKeeper
from operating.instance import PLAIN, Instance, connect, write
from vfio_user import IrqIndex


def packed(parcel: Parcel) -> list[dict[str, Any]]:
    """The messages of a parcel, as JSON has them."""
    parcel.exit.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, beside, _, _ = parcel.exit.recvmsg(1 << 16, socket.CMSG_LEN(253 * 4), socket.MSG_PEEK)
            fds = memoryview(b"".join(content for _, _, content in beside)).cast("i").tolist()
            if data == b"@":  # a long message is in a memory file
                with open(fds.pop(0), "rb") as file:
                    data = os.pread(file.fileno(), 1 << 24, 0)
            found.append({"message": json.loads(data), "fds": [_described(fd) for fd in fds]})
    return found


def unpacked(messages: list[dict[str, Any]], client: socket.socket) -> Parcel:
    """A parcel like the packed one, with ``client`` in the place of its socket."""
    parcel = Parcel()
    for each in messages:
        fds = [_made(what, client) for what in each["fds"]]
        socket.send_fds(parcel.entrance, [json.dumps(each["message"]).encode()], fds)
        for fd in fds:
            os.close(fd)
    return parcel


def _described(fd: int) -> dict[str, Any]:
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            return {"kind": "socket"}
        if not stat.S_ISREG(mode):
            return {"kind": "eventfd"}
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        return {"kind": "file", "content": base64.b64encode(zlib.compress(content, 9)).decode()}
    finally:
        os.close(fd)


def _made(what: dict[str, Any], client: socket.socket) -> int:
    if what["kind"] == "socket":
        return os.dup(client.fileno())
    if what["kind"] == "eventfd":
        return os.eventfd(0, os.EFD_NONBLOCK)
    fd = os.memfd_create("sample", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, zlib.decompress(base64.b64decode(what["content"])))
    return fd


def main() -> None:
    """A bell whose client has written a register, and has asked for interrupts and doorbells."""
    folder = Path(tempfile.mkdtemp())
    instance, keeper = Instance(folder), FdKeeper(folder / "notify")
    instance.environment["NOTIFY_SOCKET"] = str(keeper.path)
    instance.configure("dev", 'device = "edu"')
    with contextlib.closing(keeper), instance, connect(instance.socket("dev")) as client:
        write(client, PLAIN + 4, 42)  # the liveness check: it reads as the complement
        interrupt = os.eventfd(0)
        client.trigger_eventfds(IrqIndex.MSI, 0, [interrupt])
        given = keeper.passed()
        parcel = Parcel((given["bellwire1-exit-dev"], given["bellwire1-entrance-dev"]))
        Path(sys.argv[1]).write_text(json.dumps(packed(parcel), indent=1) + "\n")


if __name__ == "__main__":
    main()
