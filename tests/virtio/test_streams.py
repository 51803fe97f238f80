"""The streams that consoles and serial lines talk to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.stream import BACKENDS, Stream, StreamError, open_stream
from bellwire.stream.backends import Pty

pytestmark = pytest.mark.slow

PATIENCE = 30.0


def readable(stream: Stream, timeout: float = PATIENCE) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(timeout * 1000))


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def make(opened: contextlib.ExitStack, name: str) -> Stream:
    return opened.enter_context(contextlib.closing(open_stream(name)))


def join(opened: contextlib.ExitStack, stream: Stream, path: Path) -> socket.socket:
    far = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    far.settimeout(PATIENCE)
    far.connect(os.fspath(path))
    assert readable(stream)
    stream.look()
    assert stream.connected
    return far


def test_a_socket_carries_bytes_both_ways(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    assert stream.send([b"hel", memoryview(b"lo")]) == 5
    assert far.recv(100) == b"hello"
    far.sendall(b"and back")
    assert readable(stream)
    assert stream.receive(3) == b"and"
    assert stream.receive() == b" back"
    assert stream.receive() == b""


def test_when_a_peer_has_gone_the_next_may_come(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    join(opened, stream, tmp_path / "line").close()
    assert readable(stream)
    assert stream.receive() == b""
    assert not stream.connected
    join(opened, stream, tmp_path / "line")


def test_without_a_peer_what_is_sent_is_lost(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    assert stream.send([b"hello"]) == 5
    assert not readable(stream, 0)


def test_a_full_socket_takes_no_more_and_says_when_it_does(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    block = b"x" * 65536
    total = 0
    while (sent := stream.send([block])) == len(block):
        total += sent
    total += sent
    assert not readable(stream, 0)
    got = 0
    while got < total:
        got += len(far.recv(1 << 20))
    assert readable(stream)
    stream.look()
    assert stream.send([b"more"]) == 4
    assert not readable(stream, 0)


def test_a_stream_may_connect_itself(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "line"))
        listener.listen()
        stream = make(opened, f"connect:{tmp_path / 'line'}")
        far, _ = listener.accept()
        with far:
            stream.send([b"hello"])
            assert far.recv(100) == b"hello"


def test_a_pty_is_raw_and_can_be_named(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    link = tmp_path / "tty"
    stream = make(opened, f"pty:{link}")
    assert isinstance(stream, Pty)
    assert os.readlink(link) == stream.path
    far = os.open(link, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(far, b"a\r\x03")
        assert readable(stream)
        assert stream.receive() == b"a\r\x03"
        stream.send([b"one\ntwo\n"])
        assert os.read(far, 100) == b"one\ntwo\n"
    finally:
        os.close(far)


def test_a_pty_outlives_its_programs(opened: contextlib.ExitStack) -> None:
    stream = make(opened, "pty")
    assert isinstance(stream, Pty)
    os.close(os.open(stream.path, os.O_RDWR | os.O_NOCTTY))
    assert not readable(stream, 0)
    assert stream.connected


def test_a_pty_that_nobody_reads_holds_nothing_up(opened: contextlib.ExitStack) -> None:
    stream = make(opened, "pty")
    for _ in range(20):
        assert stream.send([b"x" * 4096]) == 4096


LONG = bytes(number % 251 for number in range(3000))
"""As single bytes: more than one system call takes."""


@pytest.mark.parametrize("kind", ["pty", "unix", "file"])
def test_a_long_row_of_pieces_is_taken_whole(opened: contextlib.ExitStack, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "far"
    stream = make(opened, f"{kind}:{path}")
    if kind == "unix":
        far = opened.enter_context(closing_fd(join(opened, stream, path).detach()))
    else:
        far = opened.enter_context(closing_fd(os.open(path, os.O_RDONLY | os.O_NOCTTY)))
    assert stream.send([LONG[at : at + 1] for at in range(len(LONG))]) == len(LONG)
    got = b""
    while len(got) < len(LONG):
        got += os.read(far, len(LONG)) or pytest.fail(f"{len(got)} bytes have come")
    assert got == LONG


def test_a_program_that_reads_a_pty_gets_all_that_there_is_room_for(opened: contextlib.ExitStack) -> None:
    stream = make(opened, "pty")
    assert isinstance(stream, Pty)
    far = opened.enter_context(closing_fd(os.open(stream.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)))
    block = bytes(range(256)) * 1024
    assert stream.send([block]) == len(block)
    got = bytearray()
    with contextlib.suppress(BlockingIOError):
        while True:
            got += os.read(far, 1 << 16)
    assert got == block[: len(got)]
    assert len(got) >= 1 << 12
    assert stream.send([b"next"]) == 4
    assert os.read(far, 100) == b"next"


@contextlib.contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_file_is_appended_to(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before ")
    stream = make(opened, f"file:{path}")
    stream.send([b"after"])
    assert stream.receive() == b""
    assert stream.connected
    assert path.read_text() == "before after"


def test_nothing_comes_from_null(opened: contextlib.ExitStack) -> None:
    stream = make(opened, "null")
    assert stream.send([b"hello"]) == 5
    assert stream.receive() == b""
    assert not stream.connected


def test_names_are_gone_afterwards(tmp_path: Path) -> None:
    for kind in ("unix", "pty"):
        open_stream(f"{kind}:{tmp_path / kind}").close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for name in ("pty", f"unix:{tmp_path / 's'}", f"file:{tmp_path / 'f'}", "null"):
        open_stream(name).close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["", "tty", "unix", "unix:", "stdio:x", "file", "null:x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(StreamError, match="no stream"):
        open_stream(name)
    assert "unix:PATH" in BACKENDS


@pytest.mark.parametrize("name", ["unix:/no/such/folder/line", "connect:/no/such/line", "file:/no/such/file"])
def test_what_cannot_be_opened_is_told(name: str) -> None:
    with pytest.raises(StreamError, match="No such file"):
        open_stream(name)


def test_a_socket_that_an_earlier_run_has_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    stale, precious = tmp_path / "stale", tmp_path / "precious"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(os.fspath(stale))
    precious.write_text("kept")
    open_stream(f"unix:{stale}").close()
    with pytest.raises(StreamError, match="is not a socket"):
        open_stream(f"unix:{precious}")
    assert precious.read_text() == "kept"


def test_a_pty_link_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(StreamError, match="File exists"):
        open_stream(f"pty:{path}")
    assert path.read_text() == "kept"


def test_standard_streams_stay_open(opened: contextlib.ExitStack) -> None:
    code = "from bellwire.stream import open_stream; s = open_stream('stdio'); s.send([b'out']); s.close(); print('!')"
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, check=True)
    assert done.stdout == b"out!\n"


def test_a_peer_that_is_on_hold_waits(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    stream.hold(True)
    far.sendall(b"hello")
    assert not readable(stream, 0)
    stream.hold(False)
    assert readable(stream)
    assert stream.receive() == b"hello"


def test_a_peer_on_hold_may_leave(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    stream.hold(True)
    far.close()
    assert readable(stream)
    stream.look()
    assert not stream.connected
    assert not readable(stream, 0)


def test_what_a_peer_said_before_it_left_can_still_be_read(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    stream.hold(True)
    far.sendall(b"last words")
    far.close()
    assert readable(stream)
    stream.look()
    assert stream.send([b"lost"]) == 4
    assert not readable(stream, 0), "nothing more can happen until somebody listens"
    stream.hold(False)
    assert stream.receive() == b"last words"
    assert stream.receive() == b""
    assert not stream.connected


def test_a_peer_on_hold_may_take_what_is_sent(opened: contextlib.ExitStack, tmp_path: Path) -> None:
    stream = make(opened, f"unix:{tmp_path / 'line'}")
    far = join(opened, stream, tmp_path / "line")
    stream.hold(True)
    far.sendall(b"x")
    while stream.send([bytes(65536)]) == 65536:
        pass
    assert not readable(stream, 0)
    while not readable(stream, 0):
        far.recv(1 << 20)
    stream.look()
    assert stream.send([b"more"]) == 4


STDIO = """
import select, sys
from bellwire.stream import open_stream
stream = open_stream("stdio")
while select.select([stream], [], []) and (data := stream.receive(5)):
    stream.send([data.upper()])
assert stream.connected
stream.send([b"; nothing more comes, and this is heard"])
stream.close()
"""


def test_the_end_of_standard_input_is_not_the_end_of_standard_output() -> None:
    done = subprocess.run([sys.executable, "-c", STDIO], input=b"hello there", capture_output=True, check=True)
    assert done.stdout == b"HELLO THERE; nothing more comes, and this is heard"


TERMINAL = """
import os, termios
from bellwire.stream import open_stream
before = termios.tcgetattr(0), os.get_blocking(0), os.get_blocking(1)
stream = open_stream("stdio")
flags = termios.tcgetattr(0)[3]
assert not flags & (termios.ICANON | termios.ECHO) and flags & termios.ISIG and not os.get_blocking(0)
stream.close()
assert before == (termios.tcgetattr(0), os.get_blocking(0), os.get_blocking(1))
"""


def test_a_terminal_gives_every_key_and_is_left_as_it_was() -> None:
    ours, theirs = os.openpty()
    try:
        subprocess.run([sys.executable, "-c", TERMINAL], stdin=theirs, stdout=theirs, check=True)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("first", ["input", "output"])
def test_an_end_of_input_or_output_closes_that_descriptor_and_leaves_the_other(first: str) -> None:
    (source, feed), (drain, sink) = os.pipe(), os.pipe()
    with contextlib.closing(Stream()) as stream:
        stream.take(source, sink)
        if first == "input":
            os.write(feed, b"last")
            os.close(feed)
            assert (stream.receive(), stream.receive()) == (b"last", b"")
            gone, left = source, sink
        else:
            os.close(drain)
            assert stream.send([memoryview(b"lost")]) == 4
            gone, left = sink, source
        assert stream.connected
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(gone)
        os.fstat(left)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(left)
    os.close(drain if first == "input" else feed)
