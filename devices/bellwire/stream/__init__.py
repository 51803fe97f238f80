"""Streams: the other ends of serial lines and consoles: a pty, a UNIX socket, a file, or standard input and output.

``open_stream("unix:/run/console.sock")`` opens one. :data:`BACKENDS` lists the kinds.
"""

from bellwire.stream.backends import BACKENDS, open_stream, stream_fault
from bellwire.stream.stream import Stream, StreamError

__all__ = ["BACKENDS", "Stream", "StreamError", "open_stream", "stream_fault"]
