"""The Debian package: built in one fresh system; installed, run, upgraded and purged in another."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bed
from bed import Bed
from fresh import roots

pytestmark = [pytest.mark.fresh, pytest.mark.long, pytest.mark.systemd]
BUILDERS = ("python3-venv", "dpkg-dev", "debhelper", "lintian")
PATIENCE = 900.0
QUIET = "DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends"
SERVICE = "bellwired.service"


@pytest.fixture(scope="module", params=roots.SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    if reason := bed.why_not() or roots.why_not():
        pytest.skip(f"cannot boot a fresh system here: {reason}")
    return str(request.param)


@pytest.fixture(scope="module")
def package(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make deb` has built, with lintian's opinion of it."""
    folder = tmp_path_factory.mktemp(suite)
    with bed.booted(roots.root(suite, (*roots.MINIMAL, *BUILDERS))) as system:
        roots.check_out(system, "/root/bellwire")
        sh(system, "apt-get -qq update && cd /root/bellwire && make deb")
        sh(system, "lintian --fail-on error,warning bellwire/build/deb/*.changes")
        (built,) = system.path("/root/bellwire/build/deb").glob("*.deb")
        return Path(shutil.copy(built, folder))


@pytest.fixture
def system(suite: str) -> Iterator[Bed]:
    with bed.booted(roots.root(suite)) as booted:
        yield booted


def sh(system: Bed, line: str) -> str:
    done = system.run("su", "--login", "--command", line, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-6000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def give(system: Bed, package: Path) -> str:
    """Where it has the package."""
    shutil.copy(package, system.path("/root"))
    return f"/root/{package.name}"


def newer(package: Path) -> Path:
    """The same package as a later version."""
    tree = package.parent / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1:"))
    made = package.with_name("newer.deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    return made


def test_it_uses_what_the_distribution_has_new_enough(package: Path, suite: str) -> None:
    needs = subprocess.run(
        ["dpkg-deb", "--field", package, "Depends"], capture_output=True, text=True, check=True
    ).stdout
    assert ("python3-msgspec" in needs) == (suite == "trixie"), "bookworm has none"
    assert "python3 (<< 3." in needs


def test_it_is_installed_runs_is_upgraded_and_purged(package: Path, system: Bed) -> None:
    sh(system, f"apt-get -qq update && {QUIET} install {give(system, package)}")
    assert system.show(SERVICE, "ActiveState") == "active"
    assert system.show(SERVICE, "UnitFileState") == "enabled"
    system.path("/etc/bellwire/devices.d/teaching.toml").write_text('device = "edu"\n')
    assert "edu" in sh(system, "bellwire reload && bellwire status teaching")
    assert sh(system, "man --version >/dev/null 2>&1; ls /usr/share/man/man1/bellwire.1.gz")

    first = system.show(SERVICE, "MainPID")
    sh(system, f"{QUIET} install {give(system, newer(package))}")
    assert system.show(SERVICE, "ActiveState") == "active"
    assert system.show(SERVICE, "MainPID") != first
    assert "running" in sh(system, "bellwire status teaching")

    sh(system, f"{QUIET} remove bellwire")
    assert system.show(SERVICE, "ActiveState") in ("inactive", "failed")
    assert system.path("/etc/bellwire/devices.d/teaching.toml").exists()
    sh(system, f"{QUIET} purge bellwire")
    left = sh(system, "find /etc /usr /run -name '*bellwire*' ! -path '/run/host*'")
    assert left == ""
    assert system.journal(_SYSTEMD_UNIT=SERVICE, PRIORITY="3") == []
