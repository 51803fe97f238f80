"""Back ends under much work: a tree like a kernel's and fio on a folder of the host; a network without root."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import vhost_backends
from attached import PATIENCE, Device, end, with_us
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from figures import FIO
from linux import Guest
from test_vhost import CONTENT, URL, giving
from vhost_backends import ADDRESS

pytestmark = [pytest.mark.guest, pytest.mark.long]

TREES = {"stock": 8_000, "patched": 40_000}
"""Files. Linux 6.1 has 79,000, so this is half of it: an emulated guest takes 10 ms of a processor for each file that
it unpacks and packs again, and 40,000 are eight minutes on a quiet machine."""
IN_A_FOLDER = 16
PATIENT = 15  # files a second, of a busy machine
USUAL, LARGEST = 7_000, 2 << 20  # bytes of a file: the median, and no more than
NOBODY = 65534
TREE = """
part() { echo "$1 $(cut -d ' ' -f 1 /proc/uptime)"; }
mkdir -p /shared
mount -t virtiofs host /shared || exit 2
part begin
tar -C /shared -xf /shared/tree.tar || exit 3
part unpacked
tar -C /shared/given -cf /shared/back.tar tree || exit 4
part packed
fio --directory=/shared --size=16m --numjobs=2 --ioengine=psync --rw=randrw --bsrange=4k-128k --verify=crc32c \\
    --name=x --output-format=terse >/tmp/fio 2>&1 || { cat /tmp/fio; exit 5; }
umount /shared || exit 6
dmesg | grep -E 'Oops|BUG|Call Trace|fuse.*error'
exit 0
"""
FETCH = f"""
ip link set eth0 up
ip addr add {ADDRESS}/24 dev eth0
n=0; until wget -q -T 5 -O /tmp/got {URL}; do n=$((n + 1)); [ $n -lt 20 ] || exit 9; done
sha256sum </tmp/got
"""


@contextlib.contextmanager
def tree(folder: Path, files: int) -> Iterator[Path]:
    """A folder with a tree like a kernel's, the same each time, and an archive of it."""
    chance = random.Random(1)
    stock = chance.randbytes(2 * LARGEST)
    root = folder / "tree"
    places = [root]
    for number in range(files // IN_A_FOLDER):
        places.append(chance.choice(places[:64]) / f"d{number}")
        places[-1].mkdir(parents=True)
    for number in range(files):
        size = min(LARGEST, int(chance.lognormvariate(0, 1.2) * USUAL))
        start = chance.randrange(LARGEST)
        (places[number % len(places)] / f"f{number}").write_bytes(stock[start : start + size])
    with tarfile.open(folder / "tree.tar", "w") as archive:
        archive.add(root, "tree")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Of all names and contents, in whatever order they come."""
    lines = sorted(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def below(root: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a folder."""
    return ((f"{path.relative_to(root.parent)}", path.read_bytes()) for path in root.rglob("*") if path.is_file())


def within(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files in an archive."""
    with tarfile.open(archive) as opened:
        for member in opened:
            if (file := opened.extractfile(member)) is not None:
                yield member.name, file.read()


@pytest.mark.timeout(2 * max(TREES.values()) / PATIENT)
@pytest.mark.parametrize("machine", TREES)
def test_a_tree_like_a_kernels_is_unpacked_on_the_host_and_packed_from_there_and_fio_finds_what_it_has_written(
    machine: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    serve: Callable[[Device], Plugged],
    tell: Callable[..., None],
) -> None:
    tools: Toolbox = request.getfixturevalue("tools" if machine == "stock" else "patched_tools")
    files = TREES[machine]
    shared, socket = tmp_path / "shared", tmp_path / "fs.sock"
    (shared / "given").mkdir(parents=True)
    guest = Guest(tools, tmp_path)
    tell(guest.report)
    words = [*vhost_backends.virtiofsd(tools, shared, socket), "--inode-file-handles=prefer"]  # not one open for each
    with tree(tmp_path / "made", files) as made:
        whole = digest(below(made / "tree"))
        (made / "tree.tar").rename(shared / "tree.tar")
        (made / "tree").rename(shared / "given" / "tree")
    with vhost_backends.running(words, socket):
        device = serve(Device("vhost", {"backend": f"unix:{socket}", "tag": "host"}))
        outcome = guest.run(TREE, [device], modules=["virtiofs"], programs=[FIO], mib=512, timeout=files / PATIENT)
    assert outcome.status == 0, outcome.output
    times = dict(line.split() for line in outcome.output.splitlines())
    begin, unpacked, packed = (float(times[part]) for part in ("begin", "unpacked", "packed"))
    print(f"{files / (unpacked - begin):.0f} files a second unpacked, {files / (packed - unpacked):.0f} packed")
    assert digest(below(shared / "tree")) == whole, "unpacked by the guest"
    assert digest(within(shared / "back.tar")) == whole, "packed by the guest"
    shutil.rmtree(shared)


@pytest.fixture
def of_nobody(tools: Toolbox) -> Iterator[tuple[list[str], Path]]:
    """Words that run passt where every user may, and a folder of nobody's."""
    with tempfile.TemporaryDirectory() as name:
        place, files = Path(name), tools.program("usr/bin/passt")
        for path, source in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place / path)
        for folder, _, names in os.walk(place):
            for each in (folder, *(f"{folder}/{file}" for file in names)):
                os.chmod(each, 0o755)
        own = place / "own"
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        libraries = ":".join(sorted({os.fspath((place / path).parent) for path in files}))
        loader = next(place / path for path in files if "ld-linux" in path)
        yield [os.fspath(loader), "--library-path", libraries, os.fspath(place / "usr/bin/passt")], own


def test_a_guest_has_the_network_by_a_passt_of_nobodys_and_a_device_without_privileges(
    tools: Toolbox, of_nobody: tuple[list[str], Path], tmp_path: Path, tell: Callable[..., None]
) -> None:
    program, own = of_nobody
    socket, path = own / "net.sock", tmp_path / "device"
    usual = vhost_backends.passt(tools, socket)
    words = [*program, *usual[next(at for at, word in enumerate(usual) if word.endswith("bin/passt")) + 1 :]]
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", *words]
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", sys.executable, "-m", "bellwired"]
    bare += ["run", "vhost", "--socket-path", os.fspath(path), "-o", f"backend=unix:{socket}", "-o", "type=net"]
    guest = Guest(tools, tmp_path)
    tell(guest.report)
    with (
        vhost_backends.running(as_nobody, socket) as passt,
        giving(),
    ):
        socket.chmod(0o666)  # without capabilities, root is a user as any other
        with subprocess.Popen(with_us(bare), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as device:
            try:
                assert device.stdout is not None
                assert device.stdout.readline()
                for process, line in ((passt.process, f"Uid:\t{NOBODY}\t"), (device, "CapEff:\t0000000000000000")):
                    assert process is not None
                    assert line in Path(f"/proc/{process.pid}/status").read_text()
                outcome = guest.run(FETCH, [Plugged(path)], modules=["virtio_net"], timeout=PATIENCE * 5)
            finally:
                end(device)
    assert (outcome.status, outcome.output) == (0, f"{hashlib.sha256(CONTENT).hexdigest()}  -\n")
