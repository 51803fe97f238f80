"""The README word for word on a fresh system, as root and as a user who may use sudo.

`make test` takes 20 minutes: `make check` stands in for it, unless BELLWIRE_FRESH=whole is in the environment. QEMU of
the version that it takes is not in these releases; tests/docs compare that line, and tests/guest run it.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

import bed
from bed import Bed
from daemon.commands import innermost
from docs.documents import ROOT, blocks
from fresh import roots

pytestmark = [pytest.mark.fresh, pytest.mark.long, pytest.mark.systemd]
README = ROOT / "README.md"
WHOLE = os.environ.get("BELLWIRE_FRESH") == "whole"
PATIENCE = 3600.0 if WHOLE else 1200.0
LONGEST = 100  # lines that `bellwire run` may say before
UMASKS = {"root": "022", "ada": "002"}


class Newcomer:
    """Somebody with a checkout of the project on a fresh system."""

    def __init__(self, system: Bed, name: str) -> None:
        self.system, self.name = system, name
        self.home = "/root" if name == "root" else f"/home/{name}"
        self.checkout = f"{self.home}/bellwire"
        kept = " ".join(roots.VARIABLES + roots.AUTHORITIES)
        system.path("/etc/sudoers.d/network").write_text(f'Defaults env_keep += "{kept}"\n')
        if name != "root":
            system.run("useradd", "--create-home", "--user-group", "--shell=/bin/bash", name)
            system.path(f"/etc/sudoers.d/{name}").write_text(f"{name} ALL=(ALL) NOPASSWD: ALL\n")
        roots.check_out(system, self.checkout)
        system.run("chown", "--recursive", f"{name}:{name}", self.checkout)
        if UMASKS[name] == "002":
            system.run("chmod", "--recursive", "g+w", self.checkout)

    def words(self, line: str) -> list[str]:
        """A command that runs a shell's line in the checkout."""
        line = f"umask {UMASKS[self.name]}; cd {self.checkout}; PATH=$PWD/.venv/bin:$PATH; {line}"
        return ["su", "--login", self.name, "--shell=/bin/bash", "--command", line]

    def does(self, line: str) -> str:
        """What the line prints; it must succeed."""
        done = self.system.run(*self.words(line), check=False, timeout=PATIENCE)
        assert done.returncode == 0, f"{line}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(params=roots.SUITES)
def system(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """A fresh system; ``/tmp`` lies in memory there."""
    if reason := bed.why_not() or roots.why_not():
        pytest.skip(f"cannot boot a fresh system here: {reason}")
    with bed.booted(roots.root(request.param)) as booted:
        yield booted


@pytest.fixture(params=UMASKS)
def newcomer(system: Bed, request: pytest.FixtureRequest) -> Newcomer:
    return Newcomer(system, request.param)


def shell_lines(number: int) -> list[str]:
    return blocks(README, "sh")[number].text.replace("\\\n", " ").splitlines()


def test_the_readme_holds_word_for_word(newcomer: Newcomer) -> None:
    demo, test = shell_lines(0)
    assert newcomer.system.run("sh", "-c", "command -v python3", check=False).stdout == ""
    assert " REGION_WRITE with reply message " in newcomer.does(demo)
    assert " passed" in newcomer.does(test if WHOLE else test.replace("make test", "make check"))

    serve, _ = shell_lines(1)
    device = f"{newcomer.checkout}/copier.py"
    newcomer.system.path(device).write_text(blocks(README, "python")[0].text)
    newcomer.system.run("chown", f"{newcomer.name}:", device)
    words = newcomer.system.inside(newcomer.words(f"exec {serve}"))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = itertools.takewhile(lambda line: "/tmp/copier.sock" not in line, server.stdout)
        assert sum(1 for _ in said) < LONGEST, "it prints the line that attaches QEMU"
        assert newcomer.system.path("/tmp/copier.sock").is_socket()
        os.kill(innermost(server.pid), signal.SIGINT)
        assert server.wait(30) == 0

    for line in shell_lines(2):
        newcomer.does(line)
    assert newcomer.system.show("bellwired.service", "ActiveState") == "active"
    assert newcomer.does("sudo bellwire list --json").count('"running"') == 1

    owners = newcomer.system.run("find", newcomer.checkout, "!", "-user", newcomer.name).stdout
    assert owners == "", "root has left files in the checkout"
    newcomer.does("sudo systemctl disable --now bellwired.socket bellwired.service && sudo make uninstall")
    left = newcomer.system.run("find", "/usr", "-name", "*bellwire*").stdout
    assert left == ""
