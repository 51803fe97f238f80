"""Another user of the machine leads root, or the daemon's user, to code and configuration of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwired import settings
from bellwired.commands.cli import main
from bellwired.errors import CommandError
from bellwired.find import find_device, find_trusted, plugins
from bellwired.places import Places
from bellwired.toml_file import text
from operating.instance import PLUGINS, Instance

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
NOBODY, SERVICE = 65534, 1
TRIES = 60
EVIL = """
from pathlib import Path
Path({ran!r}).touch()
from bellwire import PciDevice

class Probe(PciDevice, vendor=0x1234, device=1, class_code=0x088000):
    "Another user's."
"""


class Prey:
    """A configuration of root's, and one of another user's; ``config`` is a link in that user's folder to either."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran = root / "ran"
        self.good, self.evil = root / "good", root / "theirs/evil"
        for made in (self.good, self.evil):
            for folder in ("plugins", "devices.d/one.toml.d"):
                (made / folder).mkdir(parents=True)
            (made / "bellwired.toml").write_text("ping-interval = 7\n")
            (made / "devices.d/one.toml").write_text('device = "../plugins/probe.py"\n')
            (made / "devices.d/one.toml.d/more.toml").write_text('mode = "0660"\n')
        shutil.copyfile(PLUGINS / "probe.py", self.good / "plugins/probe.py")
        (self.evil / "plugins/probe.py").write_text(EVIL.format(ran=str(self.ran)))
        self.config = root / "theirs/config"
        for path in [root / "theirs", self.evil, *self.evil.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        self.lead_to(self.good)

    def lead_to(self, target: Path) -> None:
        """The other user puts a link in place, atomically."""
        aside = self.root / "theirs/aside"
        aside.symlink_to(target)
        os.chown(aside, NOBODY, NOBODY, follow_symlinks=False)
        os.replace(aside, self.config)


@pytest.fixture
def prey(tmp_path: Path) -> Prey:
    return Prey(tmp_path)


def quiet(*words: str) -> None:
    with contextlib.suppress(CommandError, SystemExit):
        main([*words])


Use = Callable[[Prey], object]
USES: dict[str, Use] = {
    "plugins": lambda prey: quiet("plugins", "--config-dir", str(prey.config)),
    "run": lambda prey: quiet("run", f"{prey.config}/plugins/probe.py", "--print-capabilities"),
    "check": lambda prey: quiet("check", f"{prey.config}/devices.d/one.toml"),
    "cat-config": lambda prey: quiet("cat-config", "--config-dir", str(prey.config)),
    "find by name": lambda prey: find_device("probe", [prey.config / "plugins"]),
    "find by path": lambda prey: find_trusted(f"{prey.config}/plugins/probe.py", []),
}
"""What takes code from a path."""

FILES = ("bellwired.toml", "devices.d/one.toml", "devices.d/one.toml.d/more.toml")

_flip: list[Callable[[], None]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _flip and str(arguments[0]).endswith("probe.py"):
        _flip.pop()()


@pytest.fixture(scope="module")
def hooked() -> None:
    """Python tells of each file that it is about to open. There is no way to take the hook out again."""
    sys.addaudithook(_hook)


@pytest.mark.parametrize("use", USES)
def test_a_link_that_flips_just_before_the_file_is_opened_runs_nothing(prey: Prey, use: str, hooked: None) -> None:
    _flip.append(lambda: prey.lead_to(prey.evil))
    with contextlib.suppress(CommandError):
        USES[use](prey)
    _flip.clear()
    assert not prey.ran.exists()


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_a_link_that_flips_all_the_time_runs_nothing(prey: Prey, use: str) -> None:
    with flipping(prey):
        for _ in range(TRIES):
            with contextlib.suppress(CommandError):
                USES[use](prey)
    assert not prey.ran.exists()


@contextlib.contextmanager
def flipping(prey: Prey) -> Iterator[None]:
    """A process of the other user exchanges the link as fast as it can."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            folder = os.open(prey.root / "theirs", os.O_PATH | os.O_DIRECTORY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            while True:
                for target in (prey.good, prey.evil):
                    os.symlink(target, "flip", dir_fd=folder)
                    os.replace("flip", "config", src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.daemon
def test_a_reload_runs_nothing_from_behind_a_link_that_flips(tmp_path: Path) -> None:
    prey = Prey(tmp_path)
    with Instance(tmp_path / "daemon") as instance, flipping(prey):
        instance.configure("one", f'device = "{prey.config}/plugins/probe.py"')
        for number in range(20):
            instance.configure("one", f'device = "{prey.config}/plugins/probe.py"\n# {number}')
            instance.reload()
        assert "user 65534" in instance.describe("one")["error"]
    assert not prey.ran.exists()


@pytest.mark.parametrize("file", FILES)
def test_configuration_behind_a_link_of_another_user_is_not_read(prey: Prey, file: str) -> None:
    with pytest.raises(CommandError, match=r"config is not followed: .*/theirs: belongs to user 65534"):
        text(prey.config / file)


@pytest.mark.parametrize("level", [".", "good", "good/devices.d"])
@pytest.mark.parametrize("file", FILES[1:])
def test_configuration_below_a_folder_that_others_may_write_is_not_read(prey: Prey, level: str, file: str) -> None:
    place = (prey.root / level).resolve()
    place.chmod(0o777)
    with pytest.raises(CommandError, match=f"^{place}: others than its owner may write it$") as refused:
        text(prey.good / file)
    assert refused.value.hint == f"chmod go-w {place}"
    places = Places((prey.good,), (), prey.root)
    assert f"{place}: others than its owner may write it" in str(settings.load(places).errors["one"])


@pytest.mark.parametrize("level", [".", "good", "good/plugins"])
def test_a_plugin_below_a_folder_that_others_may_write_does_not_run(prey: Prey, level: str) -> None:
    place = (prey.root / level).resolve()
    place.chmod(0o777)
    with pytest.raises(CommandError, match=f"^{place}: others than its owner may write it$"):
        find_device("probe", [prey.good / "plugins"])
    with pytest.raises(CommandError, match=f"^{place}: others than its owner may write it$"):
        find_trusted(f"{prey.good}/plugins/probe.py", [])
    (listed,) = [each for each in plugins([prey.good / "plugins"]) if each.name == "probe"]
    assert listed.error == f"{place}: others than its owner may write it"


def test_a_plugin_below_another_users_folder_does_not_run(prey: Prey) -> None:
    os.chown(prey.root, NOBODY, NOBODY)
    with pytest.raises(CommandError, match=f"^{prey.root}: belongs to user 65534 ") as refused:
        find_device("probe", [prey.good / "plugins"])
    assert refused.value.hint == "it must belong to root: chown it, or use another path"


def test_root_runs_no_file_of_another_user_even_if_it_is_named(prey: Prey) -> None:
    with pytest.raises(CommandError, match=r"theirs: belongs to user 65534"):
        find_device(f"{prey.evil}/plugins/probe.py")
    assert not prey.ran.exists()


def test_the_user_of_sudo_may_name_a_file_of_their_own(prey: Prey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert find_device(f"{prey.evil}/plugins/probe.py").__doc__ == "Another user's."
    with pytest.raises(CommandError, match=r"theirs: belongs to user 65534"):
        find_trusted(f"{prey.evil}/plugins/probe.py", [])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder of root's in /tmp, which all users may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_the_daemons_user_runs_no_code_below_a_folder_that_anybody_may_write(open_folder: Path) -> None:
    prey = Prey(open_folder)
    (open_folder / "all").mkdir()
    (open_folder / "all").chmod(0o777)
    (prey.good).rename(open_folder / "all/good")
    path = open_folder / "all/good/plugins/probe.py"
    with acting_as(SERVICE):
        with pytest.raises(CommandError, match=f"^{open_folder}/all: others than its owner may write it"):
            find_trusted(str(path), [])
        with pytest.raises(CommandError, match=f"^{open_folder}/all: others than its owner may write it"):
            text(open_folder / "all/good/devices.d/one.toml")


def test_the_daemons_user_runs_code_of_its_own_and_roots(open_folder: Path) -> None:
    prey = Prey(open_folder)
    with acting_as(SERVICE):
        assert find_trusted(f"{prey.good}/plugins/probe.py", []).name == "probe"
    for path in (prey.good, prey.good / "plugins", prey.good / "plugins/probe.py"):
        os.chown(path, SERVICE, SERVICE)
    with acting_as(SERVICE):
        assert find_trusted(f"{prey.good}/plugins/probe.py", []).name == "probe"
    with pytest.raises(CommandError, match="good: belongs to user 1 "):
        find_trusted(f"{prey.good}/plugins/probe.py", [])


def test_a_runtime_folder_of_the_daemons_user_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = tmp_path / "bellwire"
    (runtime / "plugins").mkdir(parents=True)
    (runtime / "plugins/probe.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    monkeypatch.setattr("bellwired.places.SYSTEM_RUNTIME", runtime)
    monkeypatch.setattr("bellwired.places.SYSTEM", (tmp_path / "etc", runtime))
    assert runtime in Places.of(environment={}, uid=0).config
    os.chown(runtime, SERVICE, SERVICE)
    for uid in (0, SERVICE):
        places = Places.of(environment={"RUNTIME_DIRECTORY": str(runtime)}, uid=uid)
        assert (places.config, places.plugins) == ((tmp_path / "etc",), (tmp_path / "etc/plugins",))
        settings.load(places)
        assert f"{runtime}: belongs to user 1 (daemon), so nothing is read from its plugins" in caplog.text
        caplog.clear()
