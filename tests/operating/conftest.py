"""One daemon for all tests that do not end it: each adds devices of its own."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from operating.instance import Instance

Run = Callable[..., tuple[int, str, str]]
UNWELCOME = ("ERROR asyncio", "never awaited", "never retrieved", "has failed", "nonsense")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a daemon is left to the long part."""
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and {"shared", "instance"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.daemon)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with Instance(tmp_path_factory.mktemp("shared")) as running:
        running.configure("steady", 'device = "bell"')
        running.reload()
        yield running


@pytest.fixture
def daemon(shared: Instance) -> Iterator[Instance]:
    """The shared daemon, without what the test before has added, and with nothing bad to say about itself."""
    since = shared.now()
    files = {path: path.read_text() for path in shared.config.rglob("*") if path.suffix in (".py", ".toml")}
    yield shared
    for path in set(shared.devices.iterdir()) | set(shared.plugins.glob("*.py")):
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in files:
            path.unlink()
    for path, text in files.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    shared.reload()
    said = "".join(shared.log.splitlines(keepends=True)[since:])
    assert not [words for words in UNWELCOME if words in said], said


@pytest.fixture
def run(daemon: Instance, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command on the shared daemon: its status, and what it said on standard output and error."""

    def work(*words: str) -> tuple[int, str, str]:
        status = main([*words, *daemon.places])
        said = capsys.readouterr()
        return status, said.out, said.err

    return work


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """A daemon of the test's own, not yet started."""
    return Instance(tmp_path)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The members of the files' group, which is named as their owner; more may be added."""
    members: list[str] = []
    owner = pwd.getpwuid(os.geteuid())
    found = grp.struct_group((owner.pw_name, "x", owner.pw_gid, members))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: found)
    return members
