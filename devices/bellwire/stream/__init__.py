"""What serial lines and consoles have at their other end: a pty, a UNIX socket, a file, standard input and output.

``open_stream("unix:/run/console.sock")`` makes one; :data:`BACKENDS` says which there are.
"""

from bellwire.stream.backends import BACKENDS, open_stream, stream_fault
from bellwire.stream.stream import Stream, StreamError

__all__ = ["BACKENDS", "Stream", "StreamError", "open_stream", "stream_fault"]
