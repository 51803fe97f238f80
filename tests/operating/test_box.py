"""The box around a device: what one that has been taken over tries against others fails."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from operating import as_user
from operating.instance import PLUGINS, Instance, connect, write

pytestmark = pytest.mark.daemon
HARMLESS = {"thread", "own mapping", "eat memory", "thread bomb"}
NEIGHBOUR = 'device = "nvme"\n[options]\nimage = "{folder}/neighbour.img"\n'
TAKEN = """
device = "taken_over"
[options]
manager = {manager}
neighbour = {neighbour}
elsewhere = "{elsewhere}"
control = "{control}"
"""
OVER = "attacks are over"  # the plugin's last line


WIDER = """
device = "taken_over"
sandbox = ["sockets", "processes"]
[options]
only = "{only}"
control = "{control}"
"""


def outcomes(instance: Instance, name: str = "taken") -> dict[str, str]:
    """What came of each attack of the device ``name``. Its log comes by a way of its own: wait for the last line."""
    lines: list[str] = []
    with instance.control() as control, connect(instance.socket(name)) as client:
        control.send("Log", more=True, name=name, follow=True)
        control.receive()  # what was said before
        write(client, 0, 1)
        while not any(OVER in line for line in lines):
            lines += [line["text"] for line in control.receive()["lines"]]
    found = [json.loads(line.partition("attacks ")[2]) for line in lines if "attacks {" in line]
    return {name: said for each in found for name, said in each.items()}


@pytest.fixture(scope="module", params=["root", "user"])
def attacked(request: pytest.FixtureRequest) -> Iterator[Instance]:
    """A daemon with a neighbour, and with a device that has been taken over."""
    if os.geteuid():
        pytest.skip("changes its user: run it as root")
    folder = Path(tempfile.mkdtemp(prefix="bellwire-"))  # others may reach it
    folder.chmod(0o755)
    instance = Instance(folder)
    shutil.copyfile(PLUGINS / "taken_over.py", instance.plugins / "taken_over.py")
    (folder / "neighbour.img").write_bytes(bytes(1 << 20))
    instance.configure("neighbour", NEIGHBOUR.format(folder=folder))
    instance.prefix = as_user.command(privileged=request.param == "root")
    if request.param == "user":
        as_user.give(folder)
    with instance:
        processes = {"manager": instance.process.pid, "neighbour": instance.pid("neighbour")}
        places = {"elsewhere": str(folder)[1:], "control": str(instance.runtime / "control")[1:]}
        path = instance.devices / "taken.toml"
        path.write_text(TAKEN.format(**processes, **places))
        os.chown(path, *(path.parent.stat().st_uid, path.parent.stat().st_gid))
        assert instance.reload()["failed"] == {}, instance.log
        yield instance
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(attacked: Instance) -> dict[str, str]:
    return outcomes(attacked)


def test_every_attack_of_a_device_that_was_taken_over_fails(found: dict[str, str]) -> None:
    assert len(found) > 70
    others = {name: said for name, said in found.items() if not said.startswith("PermissionError")}
    assert others == dict.fromkeys(HARMLESS, "done") | {"clone3": "OSError Function not implemented"}


def test_attacks_change_nothing(attacked: Instance, found: dict[str, str]) -> None:
    folder = attacked.config.parent
    assert sorted(path.name for path in folder.iterdir()) == ["config", "neighbour.img", "run"]
    assert (folder / "neighbour.img").stat().st_size == 1 << 20
    assert sorted(path.name for path in attacked.devices.iterdir()) == ["neighbour.toml", "taken.toml"]
    assert attacked.describe("neighbour")["state"] == "running"
    assert attacked.reload()["started"] == []
    assert found


def test_a_refused_call_is_named_with_the_word_that_would_allow_it(attacked: Instance, found: dict[str, str]) -> None:
    assert found
    attacked.said('taken: its box refuses socket(); sandbox = ["network"] in its file allows it')
    attacked.said('taken: its box refuses execve(); sandbox = ["processes"] in its file allows it')
    attacked.said("taken: its box refuses ptrace(); devices do not need it: this one may have been taken over")


@pytest.mark.parametrize("way", ["control socket", "control socket by an orphan"])
def test_a_device_that_may_use_sockets_is_refused_by_the_control_socket(attacked: Instance, way: str) -> None:
    path = attacked.devices / "wider.toml"
    path.write_text(WIDER.format(only=way, control=str(attacked.runtime / "control")[1:]))
    os.chown(path, *(path.parent.stat().st_uid, path.parent.stat().st_gid))
    since = attacked.now()
    assert attacked.reload()["failed"] == {}
    assert outcomes(attacked, "wider")[way].startswith(("PermissionError", "ConnectionResetError", "BrokenPipeError"))
    attacked.said("a caller of the control socket was refused: process ", since)
    assert attacked.describe("neighbour")["state"] == "running"
    path.unlink()
    attacked.reload()


def test_memory_beyond_the_limit_fails_in_the_device_alone(attacked: Instance) -> None:
    path = attacked.devices / "hungry.toml"
    path.write_text('device = "taken_over"\nmemory-max = "256M"\noptions = {only = "eat memory"}\n')
    os.chown(path, *(path.parent.stat().st_uid, path.parent.stat().st_gid))
    assert attacked.reload()["failed"] == {}
    assert outcomes(attacked, "hungry") == {"eat memory": "MemoryError"}
    assert attacked.describe("neighbour")["state"] == "running"
    path.unlink()
    attacked.reload()


OTHER = """
device = "taken_over"
user = "54322"
tasks-max = 8
options = {only = "thread bomb"}
"""


def test_a_device_of_another_user_can_start_so_many_threads(attacked: Instance) -> None:
    path = attacked.devices / "other.toml"
    path.write_text(OTHER)
    os.chown(path, *(path.parent.stat().st_uid, path.parent.stat().st_gid))
    failed = attacked.reload()["failed"]
    if attacked.config.stat().st_uid:  # a user's daemon
        assert "it cannot be run in its box: [Errno 1] Operation not permitted" in failed["other"]
    else:
        assert failed == {}
        assert os.stat(f"/proc/{attacked.pid('other')}/fd").st_uid == 0  # it hides
        status = Path(f"/proc/{attacked.pid('other')}/status").read_text()
        assert "Uid:\t54322\t54322\t54322\t54322\n" in status
        assert "Groups:\t \n" in status
        assert outcomes(attacked, "other") == {"thread bomb": "RuntimeError"}
    path.unlink()
    attacked.reload()


def test_each_device_has_a_user_of_its_own_from_the_range() -> None:
    if os.geteuid():
        pytest.skip("changes its user: run it as root")
    with tempfile.TemporaryDirectory(prefix="bellwire-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # others may reach it
        instance = Instance(folder, 'worker-users = "200000-265535"\n')
        for device in ("one", "two"):
            instance.configure(device)
        instance.configure("named", 'device = "probe"\nuser = "54322"')
        with instance:
            users = {}
            for device in ("one", "two", "named"):
                connect(instance.socket(device)).close()
                status = Path(f"/proc/{instance.pid(device)}/status").read_text()
                [line] = [each for each in status.splitlines() if each.startswith("Uid:")]
                [users[device]] = set(map(int, line.split()[1:]))
            before = users["one"]
            instance.call("Restart", name="one")
            assert f"Uid:\t{before}\t" in Path(f"/proc/{instance.pid('one')}/status").read_text()
    assert users["named"] == 54322
    assert users["one"] != users["two"]
    assert all(200000 <= users[device] <= 265535 for device in ("one", "two"))
