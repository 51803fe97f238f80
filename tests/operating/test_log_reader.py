"""A reader of the log that is slow, stopped or gone holds nothing up."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired import unblocked
from bellwired.sinks import Journal, Stream
from bellwired.unblocked import LONGEST, MOST, Flood, Unblocked
from operating.instance import EDITION, PATIENCE, Instance, connect, eventually, read

numbers = itertools.count()
SOON = 10.0  # seconds: a log call that waits takes for ever


def logger_to(sink: Stream | Journal, *, threaded: bool = True) -> tuple[logging.Logger, Unblocked]:
    logger = logging.getLogger(f"reader.{next(numbers)}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = Unblocked(sink, threaded=threaded)
    logger.addHandler(handler)
    return logger, handler


def fill(fd: int) -> int:
    """Fill the pipe of ``fd``, as another process that shares it. The number of bytes."""
    count = 0
    other = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            count += os.write(other, b"x" * 4095 + b"\n")
    os.close(other)
    return count


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the reader's end, and the log's."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def read_lines(fd: int, until: str) -> list[str]:
    """All lines up to the one that ends with ``until``."""
    text = ""
    while not text.endswith(until + "\n"):
        text += os.read(fd, 1 << 16).decode()
    return text.splitlines()


def test_a_line_is_written_at_once_while_there_is_room(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(Stream(pipe[1]))
    threads = threading.active_count()
    logger.info("one")
    assert os.read(pipe[0], 100) == b"one\n"
    assert threading.active_count() == threads
    handler.close()


def test_a_signal_handler_may_log_while_its_thread_writes_a_line(pipe: tuple[int, int]) -> None:
    class Interrupted(Stream):
        """A signal arrives when its first line is written."""

        def write(self, data: memoryview) -> int:
            count = super().write(data)
            if bytes(data) == b"one\n":
                logger.info("a signal")
            return count

    logger, handler = logger_to(Interrupted(pipe[1]), threaded=False)
    logger.info("one")
    logger.info("two")
    assert read_lines(pipe[0], "two") == ["one", "a signal", "two"]
    assert handler._size == 0
    handler.close()


def test_a_full_pipe_holds_up_no_log_call_and_keeps_the_order(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(Stream(pipe[1]))
    fill(pipe[1])
    begin = time.monotonic()
    try:
        raise ValueError("of the device")
    except ValueError:
        logger.exception("line 0")
    for number in range(1, 100):
        logger.info("line %d", number)
    assert time.monotonic() - begin < SOON
    said = [line for line in read_lines(pipe[0], "line 99") if not line.startswith("x")]
    assert said[:2] == ["line 0", "Traceback (most recent call last):"]
    assert said[-100] == "ValueError: of the device", "it is whole"
    assert said[-99:] == [f"line {number}" for number in range(1, 100)]
    handler.close()


def test_lines_that_find_no_room_are_counted_and_told(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(Stream(pipe[1]))
    fill(pipe[1])
    kept = MOST // 1024
    for _ in range(kept + 7):
        logger.info("y" * 1023)
    assert handler.lost == 7
    said = read_lines(pipe[0], "7 lines of the log were lost: its reader was too slow")
    assert said[-kept - 1 : -1] == ["y" * 1023] * kept
    handler.close()


def test_a_process_that_forks_starts_no_thread_and_its_next_line_moves_the_queue_on(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(Stream(pipe[1]), threaded=False)
    fill(pipe[1])
    threads = threading.active_count()
    logger.info("one")
    assert threading.active_count() == threads
    while select.select([pipe[0]], [], [], 0)[0]:
        assert set(os.read(pipe[0], 1 << 16)) == {ord("x"), ord("\n")}
    logger.info("two")
    assert read_lines(pipe[0], "two") == ["one", "two"]
    handler.close()


def test_a_reader_that_has_gone_is_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = os.pipe()
    logger, handler = logger_to(Stream(writer))
    os.close(reader)
    logger.info("to nobody")
    assert handler.lost == 1
    handler.close()
    os.close(writer)


def test_a_socket_and_a_stopped_terminal_hold_up_no_log_call() -> None:
    ours, theirs = socket.socketpair()
    main, terminal = os.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    begin = time.monotonic()
    with ours, theirs:
        for fd in (theirs.fileno(), terminal):
            logger, handler = logger_to(Stream(fd))
            for _ in range(1000):
                logger.info("z" * 1000)
            assert handler.lost
            if fd == terminal:
                termios.tcflow(terminal, termios.TCOON)
                assert os.read(main, 10).startswith(b"z")
            handler.close()
    assert time.monotonic() - begin < 4 * SOON
    os.close(main)
    os.close(terminal)


def test_the_end_of_a_process_waits_for_a_stopped_reader_a_moment_only(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unblocked, "FLUSH", 0.1)
    logger, handler = logger_to(Stream(pipe[1]))
    fill(pipe[1])
    logger.info("last words")
    begin = time.monotonic()
    handler.flush()
    assert 0.05 < time.monotonic() - begin < unblocked.FLUSH + SOON
    handler.close()


def test_the_last_words_of_a_process_that_aborts_are_in_the_log() -> None:
    code = (
        "import logging, os; from bellwired.logs import to_stderr_or_journal; to_stderr_or_journal('info');"
        "logging.info('last words'); os.abort()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE
    )
    assert done.stderr == "INFO root: last words\n"


def test_a_huge_line_is_cut(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(Stream(pipe[1]))
    logger.info("q" * (LONGEST + 5))
    assert read_lines(pipe[0], " (5 more characters)")[0].startswith("q" * LONGEST + "... (")
    handler.close()


def test_a_line_that_cannot_be_made_is_told_by_its_place(pipe: tuple[int, int]) -> None:
    logger, handler = logger_to(Stream(pipe[1]))
    logger.info("%d", "a word")
    said = read_lines(pipe[0], "not str")
    assert f"{__file__}:" in said[0]
    assert "a line for the log cannot be made of '%d' with ('a word',)" in said[0]
    handler.close()


def test_a_device_that_floods_the_log_has_a_number_of_lines_a_second(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    logger, handler = logger_to(Stream(pipe[1]))
    handler.addFilter(Flood(10))
    for number in range(25):
        logger.handle(logging.makeLogRecord({"msg": f"line {number}", "created": 7.0, "levelno": 20}))
    logger.handle(logging.makeLogRecord({"msg": "later", "created": 8.0, "levelno": 20}))
    assert read_lines(pipe[0], "later") == [f"line {number}" for number in range(10)] + ["later"]
    assert "15 lines were too many, and are not in the log" in caplog.text
    handler.close()


# -- the journal


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """A journal's socket, from which nothing is read yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "journal"))
        yield sock


def entry(data: bytes) -> dict[str, str]:
    """The fields of an entry in the native protocol."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[8 + size + 1 :]
        fields[name.decode()] = value.decode()
    return fields


def test_an_entry_of_the_journal_has_its_fields(journald: socket.socket) -> None:
    path = Path(journald.getsockname())
    logger, handler = logger_to(Journal({"SYSLOG_IDENTIFIER": "bellwired", "BELLWIRE_DEVICE": "disk"}, path))
    logger.error("two\nlines", extra={"MESSAGE_ID": "c0ffee"})
    fields = entry(journald.recv(1 << 16))
    assert fields["MESSAGE"] == "two\nlines"
    assert fields["PRIORITY"] == "3"
    assert fields["MESSAGE_ID"] == "c0ffee"
    assert fields["BELLWIRE_DEVICE"] == "disk"
    assert fields["SYSLOG_IDENTIFIER"] == "bellwired"
    assert fields["CODE_FILE"] == __file__
    assert fields["CODE_FUNC"] == "test_an_entry_of_the_journal_has_its_fields"
    handler.close()


def test_a_journal_that_does_not_read_holds_up_no_log_call(journald: socket.socket) -> None:
    logger, handler = logger_to(Journal({}, Path(journald.getsockname())))
    begin = time.monotonic()
    for number in range(100):
        logger.info("line %d", number)
    assert time.monotonic() - begin < SOON
    journald.setblocking(True)
    assert [entry(journald.recv(1 << 16))["MESSAGE"] for _ in range(100)] == [f"line {n}" for n in range(100)]
    handler.close()


def test_a_journal_that_starts_anew_gets_the_next_line(journald: socket.socket) -> None:
    path = Path(journald.getsockname())
    logger, handler = logger_to(Journal({}, path))
    journald.close()
    path.unlink()
    logger.info("lost")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as anew:
        anew.bind(str(path))
        logger.info("here again")
        assert entry(anew.recv(1 << 16))["MESSAGE"] == "here again"
    assert handler.lost == 1
    handler.close()


# -- a daemon


def test_a_daemon_whose_log_is_not_read_works_and_says_all_afterwards(instance: Instance) -> None:
    path = instance.configure("chatty")
    with instance:
        instance.reads.clear()
        fill_of(instance.process.pid)
        for _ in range(5):
            assert instance.reload()["unchanged"] == ["chatty"]
        with connect(path) as client:
            assert read(client, EDITION) is not None
        pid = instance.pid("chatty")
        os.kill(pid, 9)
        assert eventually(lambda: instance.pid("chatty") not in (0, pid))
        connect(path).close()
        instance.call("Restart", name="chatty")
        instance.reads.set()
        instance.said("chatty: accepts clients")
        assert instance.stop() == 0
    said = [line for line in instance.log.splitlines() if not line.startswith("x")]
    assert len([line for line in said if "configuration read again" in line]) == 5
    assert len([line for line in said if "chatty: accepts clients" in line]) == 3


def test_a_daemon_whose_log_is_not_read_ends(instance: Instance) -> None:
    instance.configure("chatty")
    with instance:
        instance.reads.clear()
        fill_of(instance.process.pid)
        instance.process.terminate()
        assert instance.process.wait(PATIENCE) == 0


def fill_of(pid: int) -> None:
    """Fill the pipe that a process logs to."""
    fd = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    fill(fd)
    os.close(fd)


def test_what_device_code_prints_is_in_the_log_under_its_name(daemon: Instance) -> None:
    (daemon.plugins / "printer.py").write_text(
        "from bellwire import PciDevice\n\n\nclass Printer(PciDevice, vendor=0x1234, device=1, class_code=0x088000):\n"
        "    def setup(self):\n        print('as print', 'has it')\n"
    )
    name = daemon.add('device = "printer"')
    daemon.said(f"[{name}] INFO bellwire.printed: as print has it")
