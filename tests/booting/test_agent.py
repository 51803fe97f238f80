"""The agent itself, on this machine instead of in a guest: it is at the other end of a socket."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import stat
import threading
from pathlib import Path

import pytest

from bellwired.guest.agent import PROGRAM
from bellwired.guest.agent.build import build
from bellwired.guest.errors import MachineError
from bellwired.guest.frames import MOST_COMMANDS, WINDOW
from booting.on_host import ENVIRONMENT, PATIENCE, Agent

pytestmark = pytest.mark.slow


def test_status_output_and_errors_come_apart(agent: Agent) -> None:
    assert agent.run("sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


def test_a_command_is_searched_for_along_its_path(agent: Agent) -> None:
    assert agent.run("true") == (0, b"", b"")
    assert agent.run("true", environment={"PATH": "/nowhere:/"}) == (127, b"", b"true: not found in the guest\n")
    assert agent.run("/etc/passwd") == (126, b"", b"/etc/passwd: cannot be run in the guest\n")


def test_a_command_starts_in_its_folder_with_its_environment(agent: Agent, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "WHAT": "a word with ünicode"}
    status, output, _ = agent.run("sh", "-c", 'pwd; echo "$WHAT"', folder=str(tmp_path), environment=environment)
    assert (status, output.decode()) == (0, f"{tmp_path}\na word with ünicode\n")
    assert agent.run("true", folder="/nowhere")[::2] == (126, b"/nowhere: the guest has no such folder\n")


def test_the_signal_that_ends_a_command_is_told_and_reaches_its_children(agent: Agent) -> None:
    running, output, _ = agent.begin("sh", "-c", "sleep 100 & echo ready; wait")
    output.wait_for(b"ready")
    running.signal(signal.SIGTERM)
    assert running.wait(PATIENCE) == -signal.SIGTERM


def test_input_of_any_size_goes_through_while_output_comes(agent: Agent) -> None:
    data = os.urandom(3 * WINDOW + 17)
    running, output, _ = agent.begin("sh", "-c", "tee /dev/stderr | sha256sum")
    assert running.feed(data, PATIENCE)
    running.end_input()
    assert running.wait(PATIENCE) == 0
    assert output.data.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_a_command_that_reads_nothing_holds_its_input_back_and_no_other_command(agent: Agent) -> None:
    running, _, _ = agent.begin("sleep", "100")
    assert not running.feed(bytes(1 << 20), 0.01)
    assert agent.run("echo", "still here") == (0, b"still here\n", b"")
    running.signal(signal.SIGKILL)
    assert running.wait(PATIENCE) == -signal.SIGKILL
    assert running.feed(b"too late", PATIENCE)


def test_a_command_with_a_child_in_the_background_ends_when_it_does_itself(agent: Agent) -> None:
    status, output, _ = agent.run("sh", "-c", "sleep 1000 & echo $!")
    os.kill(int(output), signal.SIGKILL)
    assert status == 0


def test_a_terminal_has_a_size_and_passes_on_ctrl_c(agent: Agent) -> None:
    running, output, _ = agent.begin("sh", "-c", "trap 'stty size; exit 4' INT; stty size; cat", size=(30, 100))
    output.wait_for(b"30 100\r\n")
    running.feed(b"word\n")
    output.wait_for(b"word\r\nword\r\n")  # cat runs: before, the shell could keep the signal until cat ends
    running.resize(40, 120)
    running.feed(b"\x03")
    assert running.wait(PATIENCE) == 4
    assert b"40 120\r\n" in output.data


def test_the_end_of_input_reaches_a_program_on_a_terminal(agent: Agent) -> None:
    running, output, _ = agent.begin("cat", size=(24, 80))
    running.feed(b"line\n")
    output.wait_for(b"line\r\nline\r\n")
    running.end_input()
    assert running.wait(PATIENCE) == 0


def test_there_is_a_most_of_commands_at_a_time(agent: Agent) -> None:
    running = [agent.begin("sleep", "100")[0] for _ in range(MOST_COMMANDS)]
    with pytest.raises(MachineError, match="32 commands"):
        agent.begin("true")
    for each in running:
        each.signal(signal.SIGKILL)
    assert [each.wait(PATIENCE) for each in running] == [-signal.SIGKILL] * MOST_COMMANDS
    assert agent.run("true")[0] == 0


def test_commands_run_at_the_same_time(agent: Agent) -> None:
    first, said, _ = agent.begin("sh", "-c", "read word; echo first $word")
    second, answered, _ = agent.begin("sh", "-c", "read word; echo second $word")
    second.feed(b"b\n")
    first.feed(b"a\n")
    assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    assert (said.data, answered.data) == (b"first a\n", b"second b\n")


def test_commands_end_with_the_channel() -> None:
    agent = Agent(PROGRAM)
    _, output, _ = agent.begin("sh", "-c", "echo $$; exec sleep 1000")
    output.wait_for(b"\n")
    pidfd = os.pidfd_open(int(output.data))
    agent.close()
    ended, _, _ = select.select([pidfd], [], [], PATIENCE)
    os.close(pidfd)
    assert ended


def test_callers_are_told_when_the_agent_goes_away(agent: Agent) -> None:
    running, _, _ = agent.begin("sleep", "100")
    threading.Timer(0.01, agent.process.kill).start()
    with pytest.raises(MachineError, match="gone"):
        running.wait(PATIENCE)
    agent.process.wait()
    agent.process.returncode = 0


def test_a_file_is_written_with_its_folders_by_the_agents_own_tool(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    running, _, _ = agent.begin("bellwire-agent", "write", str(path), own_program=True)
    running.feed(b"content", PATIENCE)
    running.end_input()
    assert running.wait(PATIENCE) == 0
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IXUSR


def test_a_tool_that_fails_ends_with_an_errno(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status = agent.run("bellwire-agent", "write", str(tmp_path / "file" / "below"), own_program=True)[0]
    assert os.strerror(status or 0) == "Not a directory"


def test_the_sources_build_and_work(tmp_path: Path) -> None:
    build(tmp_path / "agent")
    agent = Agent(tmp_path / "agent")
    assert agent.run("echo", "hello") == (0, b"hello\n", b"")
    agent.close()
