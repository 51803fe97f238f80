"""The container: built by buildah on a minimal root, and the daemon run in it as the image's user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import bed
from daemon.commands import innermost
from docs.documents import ROOT
from fresh import roots
from vfio_user import Client, RegionIndex

pytestmark = [pytest.mark.fresh, pytest.mark.long, pytest.mark.systemd]
PATIENCE = 900.0
EDU = bytes.fromhex("3412e811")
Buildah = Callable[..., list[str]]


@pytest.fixture
def buildah(tmp_path: Path) -> Buildah:
    """A command of buildah's, whose images and containers go with the test; chroot is all that it isolates them by."""
    if reason := bed.why_not() or roots.why_not() or ("" if shutil.which("buildah") else "no buildah"):
        pytest.skip(f"cannot build a container here: {reason}")
    storage = [f"--root={tmp_path}/storage", f"--runroot={tmp_path}/run", "--storage-driver=vfs"]
    return lambda verb, *words: ["buildah", *storage, verb, *words]


def do(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout.strip()


def test_the_image_runs_the_daemon(buildah: Buildah, tmp_path: Path) -> None:
    base = roots.root("trixie")
    do(buildah("from", "--name=base", "scratch"))
    do(buildah("add", "--quiet", "base", str(base), "/"))
    variables = (base / "etc/environment").read_text().split()
    do(buildah("config", *(f"--env={variable}" for variable in variables), "base"))
    do(buildah("commit", "--quiet", "base", "localhost/base"))
    words = ("--isolation=chroot", "--network=host", "--build-arg=BASE=localhost/base", "--tag=localhost/bellwired")
    do(buildah("build", *words, "--file=packaging/Containerfile", "."))

    devices = tmp_path / "devices.d"
    devices.mkdir()
    (devices / "teaching.toml").write_text('device = "edu"\n')
    do(buildah("from", "--name=bellwired", "localhost/bellwired"))
    mount = f"--volume={devices}:/etc/bellwire/devices.d:ro"
    command = buildah("run", "--isolation=chroot", mount, "bellwired", "--", "bellwired")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        said = next((line for line in running.stdout if "ready: 1 of 1" in line), "")
        assert said, "the daemon has ended"
        manager = innermost(running.pid, "bellwired")
        assert os.stat(f"/proc/{manager}").st_uid != 0
        with Client.connect(Path(f"/proc/{manager}/root/run/bellwire/teaching.sock")) as client:
            assert client.read(RegionIndex.CONFIG, 0, 4) == EDU
        os.kill(manager, signal.SIGTERM)
        assert running.wait(60) == 0
