"""The twin socket: the server's commands, and the replies to them, on a connection of their own.

A server can then read and write the client's memory by message while the client waits for a reply: the client answers
on one socket while it waits on the other. VERSION agrees on it, and brings the client's end.
"""

from __future__ import annotations

import select
import socket
import threading

from vfio_user.channel import Channel
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.message import close_fds
from vfio_user.replies import Answers


def socket_of(fd: int) -> socket.socket:
    """The socket that came as a descriptor, which is taken over. Raises ProtocolError if it is no UNIX stream."""
    try:
        found = socket.socket(fileno=fd)
    except OSError as error:
        close_fds([fd])
        raise ProtocolError(f"VERSION reply: twin_socket is no socket: {error.strerror}") from None
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        found.close()
        raise ProtocolError("VERSION reply: twin_socket is no UNIX stream socket")
    return found


class TwinThread:
    """Answers a server's commands on the client's end of a twin socket, on a thread. It owns the socket."""

    def __init__(self, sock: socket.socket, answers: Answers, timeout: float) -> None:
        self._channel = Channel(sock, answers.most, timeout)
        self._answers = answers
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="twin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and close the socket. Not for calls from the memory that answers."""
        self._closing = True
        self._channel.break_off()  # wakes the thread
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        """Answer until the server has gone, or until the end. If the memory raises, the server is told by a hang-up."""
        waiter = select.poll()
        waiter.register(self._channel, select.POLLIN)
        try:
            while not self._closing:
                message = self._channel.receive()
                if message is None:
                    waiter.poll()
                else:
                    self._answers.serve(message, self._channel)
        except VfioUserError:
            pass  # the connection has ended, or cannot go on: requests on the other socket find out
        finally:
            self._channel.break_off()
