"""``bellwire run`` and ``bellwire vmm``, as users and service managers meet them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bellwire_vmm.vmm import Machine
from bellwired.commands.cli import main, parser
from bellwired.commands.vmm import plug
from bellwired.errors import CommandError
from daemon.commands import COMMAND, PATIENCE, bellwire, ended, line, started
from vfio_user import Client, RegionIndex, TimedOut

pytestmark = pytest.mark.daemon

MINE = """
from bellwire import Bar, Option, PciDevice

class Mine(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    "A device of my own."
    pace = Option(3, help="how fast")
    mmio = Bar(0, size=4096)
    speed = mmio.reg(0x0)

    def reset(self) -> None:
        self.speed = self.pace
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_it_says_how_to_attach_qemu(tmp_path: Path) -> None:
    path = tmp_path / "bell.sock"
    with started("run", "bell", "--socket-path", str(path)) as process:
        assert line(process) == f"bell: serving on {path}. To attach it to QEMU (10.1.1 or newer):\n"
        command = line(process)
        assert "memory-backend-memfd,id=mem,size=1G,share=on" in command
        assert f'{{"driver":"vfio-user-pci","socket":{{"path":"{path}","type":"unix"}}}}' in command
        assert ended(process, signal.SIGTERM) == 0


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_it_runs_where_standard_streams_are_closed(tmp_path: Path, closed: str) -> None:
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "run", "bell", "--socket-path", str(tmp_path / "s")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert "serving" in line(process)
            Client.connect(tmp_path / "s", timeout=PATIENCE).close()
            assert ended(process, signal.SIGTERM) == 0
        finally:
            process.kill()


def test_a_command_succeeds_where_nobody_can_read_its_output() -> None:
    words = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "plugins"]
    assert subprocess.run(words, check=False, timeout=60).returncode == 0


def test_it_says_nothing_of_serving_when_setting_up_fails(mine: Path, tmp_path: Path) -> None:
    mine.write_text(MINE + "\n    def setup(self):\n        open('/nonexistent')\n")
    done = bellwire("run", str(mine), "--socket-path", str(tmp_path / "socket"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"bellwire: Mine.setup failed at {mine}:")
    assert "No such file or directory: '/nonexistent'" in done.stderr
    assert "Traceback" not in done.stderr
    told = bellwire("--log-level", "debug", "run", str(mine), "--socket-path", str(tmp_path / "socket"))
    assert "Traceback" in told.stderr
    assert not (tmp_path / "socket").exists()


def test_it_may_open_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / "bell.sock"
    words = ["prlimit", "--nofile=64:4000", *COMMAND, "run", "bell", "--socket-path", str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line(process)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert ended(process, signal.SIGTERM) == 0
    assert re.search(r"Max open files +4000 +4000", limits)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_in_the_middle_of_a_client(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "bell.sock"
    with started("run", "bell", "--socket-path", str(path)) as process:
        line(process)
        with Client.connect(path, timeout=PATIENCE) as client:
            assert client.read(RegionIndex.CONFIG, 0, 4) == bytes.fromhex("341211be")
            assert ended(process, number) == 0
        assert not path.exists()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


HANGS = (
    MINE
    + """
    @speed.write
    def hang(self, value: int) -> None:
        print("in the hook", flush=True)
        while True:
            pass
"""
)


def test_a_second_signal_ends_a_device_whose_hook_hangs(tmp_path: Path) -> None:
    file, path = tmp_path / "hangs.py", tmp_path / "hangs.sock"
    file.write_text(HANGS)
    with started("run", str(file), "--socket-path", str(path)) as process:
        line(process)
        with Client.connect(path, timeout=PATIENCE) as client:
            client.write(0, 0, bytes(4), posted=True)
            while line(process) != "in the hook\n":
                pass
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            while "SIGTERM: stopping" not in process.stderr.readline():
                pass
            assert ended(process, signal.SIGTERM) == -signal.SIGTERM


def test_a_live_socket_is_refused_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bell.sock"
    # In a box, a process of its own removes the socket, however the device ends.
    with started("run", "bell", "--socket-path", str(path), "--no-sandbox") as process:
        line(process)
        refused = bellwire("run", "bell", "--socket-path", str(path))
        assert refused.returncode == 1
        assert "a live server listens there" in refused.stderr
        process.kill()
        process.wait()
    assert path.exists()
    with started("run", "bell", "--socket-path", str(path)) as process:
        assert "serving on" in line(process)
        assert ended(process, signal.SIGTERM) == 0


def test_an_inherited_listening_socket_serves_one_client_after_the_other(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "socket"))
        listener.listen()
        with started("run", "edu", "--fd", str(listener.fileno()), pass_fds=(listener.fileno(),)) as process:
            for _ in range(3):
                with Client.connect(tmp_path / "socket", timeout=PATIENCE) as client:
                    assert client.read(0, 0, 4) == bytes.fromhex("ed000001")
            assert ended(process, signal.SIGTERM) == 0


def test_an_inherited_connected_socket_ends_it_when_the_client_leaves() -> None:
    ours, theirs = socket.socketpair()
    with theirs, started("run", "edu", "--fd", str(theirs.fileno()), pass_fds=(theirs.fileno(),)) as process:
        theirs.close()
        with Client(ours, timeout=PATIENCE) as client:
            assert client.device_info().num_regions == 9
        assert process.wait(PATIENCE) == 0


def activation(listeners: int, pid: str = "$$") -> str:
    """A shell's words that become ``bellwire run bell --fd systemd`` with as many copies of its standard input."""
    copies = " ".join(f"{3 + at}<&0" for at in range(listeners))
    words = " ".join(map(shlex.quote, [*COMMAND, "run", "bell", "--fd", "systemd"]))
    return f"LISTEN_PID={pid} LISTEN_FDS={listeners} exec {words} {copies} </dev/null"


@pytest.mark.parametrize("count", ["many", "-1", "99999999"])
def test_a_number_of_sockets_that_makes_no_sense_is_said_in_a_line(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    assert main(["run", "bell", "--fd", "systemd"]) == 1
    assert capsys.readouterr().err.startswith(f"bellwire: LISTEN_FDS={count}: ")


@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "²"])
def test_a_descriptor_that_cannot_be_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "bell", "--fd", number])
    assert "expected a number or systemd" in capsys.readouterr().err


def test_a_socket_of_the_service_manager_is_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "socket"))
        listener.listen()
        with subprocess.Popen(["sh", "-c", activation(1)], stdin=listener.fileno(), text=True) as process:
            with Client.connect(tmp_path / "socket", timeout=PATIENCE) as client:
                assert client.read(RegionIndex.CONFIG, 0, 4) == bytes.fromhex("341211be")
            assert ended(process, signal.SIGTERM) == 0


@pytest.mark.parametrize(("script", "said"), [(activation(2), "got 2"), (activation(1, pid="1"), "got none")])
def test_anything_but_one_socket_of_the_service_manager_is_refused(script: str, said: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        done = subprocess.run(
            ["sh", "-c", script], stdin=listener.fileno(), stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert f"expected one socket from the service manager, {said}" in done.stderr


def test_a_file_of_ones_own_is_served_with_its_options(mine: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with started("run", str(mine), "-o", "pace=0x11", "--socket-path", str(path)) as process:
        assert line(process).startswith("mine: serving")
        with Client.connect(path, timeout=PATIENCE) as client:
            assert client.read(0, 0, 4) == b"\x11\0\0\0"
        assert ended(process, signal.SIGTERM) == 0


def test_capabilities_are_printed_as_json(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(mine), "--print-capabilities"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["type"], about["name"], about["vendor"], about["device"]) == ("pci", "mine", "1234", "0001")
    assert about["description"] == "A device of my own."
    assert about["options"]["pace"] == {"type": "int", "default": 3, "help": "how fast", "live": False}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bel"], "did you mean bell?"),
        (["./nothing.py"], "nothing.py: no such file"),
        (["bell", "-o", "x=1"], "bell has no option x"),
        (["bell", "-o", "=1"], "-o =1: expected KEY=VALUE"),
        (["edu", "-o", "dma_dela=1"], "did you mean dma_delay?"),
        (["edu", "-o", "dma_delay"], "expected KEY=VALUE"),
        (["edu", "-o", "dma_delay=soon"], "expected a value of type float"),
        (["bell", "--fd", "99"], "--fd 99: not a socket"),
        (["bell", "--socket-path", "/nonexistent/socket"], "/nonexistent/socket"),
        (["bell", "--socket-path", "x" * 120], "at most 107 bytes"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("bellwire: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_that_name\n", "mine.py:1: ModuleNotFoundError"),
        ("def f(:\n", "mine.py:1: SyntaxError"),
        ("x = 1\n", "defines no device"),
        (MINE.replace("0x0)", "0x2)"), "mine.py:8: DeclarationError: Mine.speed"),
        (MINE.replace("size=4096", "size=5000"), "DeclarationError: Mine.mmio"),
        (MINE + MINE.replace("class Mine", "class Yours"), "defines several devices: mine, yours"),
        ("raise SystemExit(3)\n", "mine.py:1: SystemExit"),
    ],
)
def test_a_bad_file_is_named_with_the_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main(["run", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_a_device_of_a_file_is_picked_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.py"
    path.write_text(MINE + MINE.replace("class Mine", "class Yours"))
    assert main(["run", f"{path}:yours", "--print-capabilities"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "yours"


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("device", "guest", "said"),
    [
        ("bell", "bell", "ioeventfd wildcard: 1000 rung, 1000 received, 10 interrupts"),
        ("bell", "bell3", "REGION_WRITE with reply: 1000 rung, 1000 received, 10 interrupts"),
        ("bell", "pci", "as the doorbell's BAR moved: 1, 2, 2, 2, 3, 4"),
        ("edu", "edu", "MSI: 10! = 3628800, 4096 bytes copied through the device, 4 interrupts"),
        ("nvme", "nvme", "1000 rewritten by polling, 10 by interrupt, 0 not as written, 0 commands failed"),
    ],
)
def test_vmm_boots_a_guest_and_says_what_it_found(device: str, guest: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with started("run", device, "--socket-path", str(path)) as process:
        line(process)
        done = bellwire("vmm", "--device", str(path), "--guest", guest, "--memory", "32")
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert "The guest ended well" in done.stdout
        assert ended(process, signal.SIGTERM) == 0


@pytest.mark.kvm
def test_vmm_takes_several_devices_and_vcpus(tmp_path: Path) -> None:
    paths = [tmp_path / "bell", tmp_path / "edu"]
    with (
        started("run", "bell", "--socket-path", str(paths[0])) as bell,
        started("run", "edu", "--socket-path", str(paths[1])) as edu,
    ):
        line(bell)
        line(edu)
        devices = [word for path in paths for word in ("--device", str(path))]
        done = bellwire("vmm", *devices, "--guest", "edu", "--vcpus", "2")
        assert done.returncode == 0, done.stderr
        assert "slot 1: 1234:be11" in done.stdout
        assert "slot 2: 1234:11e8" in done.stdout


@pytest.mark.kvm
def test_vmm_fails_when_its_guest_does() -> None:
    done = bellwire("vmm", "--guest", "bell")
    assert done.returncode == 1
    assert "no device" in done.stdout
    assert "the guest ended with code 1" in done.stderr


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guest", "belll"], "no guest 'belll'"),
        (["--guest", "bell", "--device", "/nonexistent"], "is a device being served there?"),
        (["--guest", "bell", "--memory", "1"], "bytes of memory"),
        (["--guest", "/nonexistent.bin"], "cannot read the guest image"),
        (["--guest", "bell", "--initrd", "/dev/null"], "--initrd is for --kernel"),
        (["--guest", "bell", "--no-reboot"], "--no-reboot is for --kernel"),
        (["--kernel", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["--kernel", "/dev/null"], "/dev/null: the kernel is neither a bzImage nor an ELF file"),
        (["--kernel", "/dev/null", "--parameters", "/dev/null"], "--parameters is for --guest"),
    ],
)
def test_vmm_says_what_it_cannot_do(words: list[str], said: str) -> None:
    done = bellwire("vmm", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def hang_up(listener: socket.socket) -> None:
    """On the first client that says something."""
    client, _ = listener.accept()
    with client:
        client.recv(4096)


@pytest.mark.kvm
def test_vmm_says_which_device_it_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        talker = threading.Thread(target=hang_up, args=(listener,))
        talker.start()
        done = bellwire("vmm", "--guest", "bell", "--device", str(path))
        talker.join()
    assert done.stderr == f"bellwire: {path}: the peer has closed the connection\n"


def test_vmm_hints_at_what_keeps_a_device_from_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> Client:
        raise TimedOut("nothing came from the peer")

    monkeypatch.setattr("bellwired.commands.vmm._connect", connect)
    with pytest.raises(CommandError, match=r"busy\.sock: nothing came") as refused:
        plug(Machine.__new__(Machine), Path("busy.sock"))
    assert "one client at a time" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [("64", 64 << 20), ("64M", 64 << 20), ("1g", 1 << 30), ("64K", None), ("0", None), ("-1", None), ("", None)],
)
def test_memory_is_given_in_mib_or_with_its_unit(text: str, size: int | None) -> None:
    words = ["vmm", "--guest", "bell", f"--memory={text}"]
    if size is None:
        with pytest.raises(SystemExit):
            parser().parse_args(words)
    else:
        assert parser().parse_args(words).memory == size


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e300", "soon"])
def test_a_timeout_that_cannot_be_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["vmm", "--guest", "bell", f"--timeout={text}"])
    assert ended.value.code == 2
    assert f"argument --timeout: {text}" in capsys.readouterr().err.replace("'", "")


def test_a_file_with_another_name_is_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "./copier.txt"]) == 1
    assert capsys.readouterr().err == "bellwire: ./copier.txt: the name of a device's file ends in .py\n"


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            del sys.argv[1]
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from bellwired.start import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "status"), [("bellwired.commands.cli", -signal.SIGINT), ("bellwired.commands.boot", 130)]
)
def test_ctrl_c_while_modules_load_leaves_no_traceback(module: str, status: int) -> None:
    words = [sys.executable, "-c", INTERRUPTED_WHILE_LOADING, module, "boot", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, "")


def test_help_names_every_command() -> None:
    done = bellwire("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("run", "vmm", "demo"))


def test_the_command_runs_as_a_module() -> None:
    assert COMMAND[1:] == ["-m", "bellwired"]
    assert bellwire("--version").stdout.startswith("bellwire ")
