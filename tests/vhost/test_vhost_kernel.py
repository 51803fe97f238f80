"""The kernel's back ends, as far as they can be seen where there are none: options, and what is said of a lack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bellwire import OptionError
from bellwire.bundled.vhost import Vhost
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.vhost import kernel, node
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.memory import Piece
from bellwire.vhost.node import Ioctl, Node
from virtio.driver import Driver


@pytest.mark.parametrize("cid", ["", "2", "4294967295", "-3", "³", "guest"])
def test_an_address_that_no_guest_can_have_is_refused(cid: str) -> None:
    with pytest.raises(OptionError, match="vhost-vsock:CID, the guest's address: 3 to 4294967294"):
        Vhost(backend=f"vhost-vsock:{cid}")


@pytest.mark.parametrize("tap", ["a/b", "sixteen-letters-"])
def test_a_tap_of_an_impossible_name_is_refused(tap: str) -> None:
    with pytest.raises(OptionError, match="an interface's name"):
        Vhost(backend=f"vhost-net:{tap}")


@pytest.mark.parametrize("backend", ["vhost-net:", "vhost-blk:x", "unix:", "nothing"])
def test_a_back_end_that_there_cannot_be_is_refused(backend: str) -> None:
    with pytest.raises(OptionError, match=r"unix:PATH .* vhost-net:TAP or vhost-vsock:CID"):
        Vhost(backend=backend)


@pytest.mark.parametrize(("backend", "other"), [("vhost-net:tap0", "blk"), ("vhost-vsock:42", "net")])
def test_the_kernels_back_ends_have_their_own_types(backend: str, other: str) -> None:
    with pytest.raises(OptionError, match=f"option type={other}: the back end"):
        Vhost(backend=backend, type=other)


def test_the_identity_is_that_of_the_kernels_back_end() -> None:
    for backend, device in (("vhost-net:tap0", 0x1041), ("vhost-vsock:42", 0x1053)):
        vhost = Vhost(backend=backend)
        assert vhost.core.identity.device == device
        vhost.core.close()


@pytest.mark.parametrize(("kind", "offload"), [(VirtioNet, "vhost-blk"), (VirtioBlk, "vhost-blk")])
def test_nothing_else_moves_data(kind: type[VirtioNet | VirtioBlk], offload: str) -> None:
    with pytest.raises(OptionError, match="none"):
        kind(offload=offload)


def test_a_socket_is_not_left_to_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="option offload=vhost-net: needs tap="):
        VirtioNet(dgram=tmp_path / "far", offload="vhost-net")


def test_a_node_that_is_missing_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "VSOCK", tmp_path / "vhost-thing")
    with pytest.raises(BackendLost, match=r"thing: there is none: load the kernel's module \(modprobe vhost_thing\)"):
        Driver(Vhost, backend="vhost-vsock:42")


def test_a_file_that_is_no_node_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    with pytest.raises(BackendError, match="the kernel refuses VHOST_GET_FEATURES: Inappropriate ioctl for device"):
        Node(tmp_path / "node")


def test_a_ring_outside_shared_memory_has_no_address_here() -> None:
    table = [Piece(0x1000, 0x1000, 3, 0, 0x7000_0000)]
    assert node._here(table, 0x1FFF) == 0x7000_0FFF
    for address in (0xFFF, 0x2000):
        with pytest.raises(BackendError, match="where the client shares no memory"):
            node._here(table, address)


class Stubborn:
    """A node that refuses what it is told to. No kernel does so on demand."""

    features = 1 << 32
    refuses = ""

    def __init__(self, path: Path) -> None:
        self.closed = False

    def share(self, table: Sequence[Piece]) -> None:
        self._do("share")

    def wire(self, which: Ioctl, index: int, fd: int) -> None:
        self._do("wire")

    def close(self) -> None:
        self.closed = True

    def _do(self, what: str) -> None:
        if what == self.refuses:
            raise BackendError("no")


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> kernel.VhostNet:
    monkeypatch.setattr(kernel, "Node", Stubborn)
    monkeypatch.setattr(Stubborn, "refuses", "")
    return kernel.VhostNet([3])


def test_a_kernel_that_does_not_forget_memory_is_let_go_of(
    stubborn: kernel.VhostNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, more = Piece(0, 4096, 3, 0, 1 << 20), Piece(8192, 4096, 3, 8192, 1 << 21)
    stubborn.share([some])
    monkeypatch.setattr(Stubborn, "refuses", "share")
    with pytest.raises(BackendError, match="no"):
        stubborn.share([some, more])
    with pytest.raises(BackendLost, match="the client takes memory back, but no"):
        stubborn.share([more])


def test_a_kernel_that_does_not_stop_a_ring_is_let_go_of(
    stubborn: kernel.VhostNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stubborn, "refuses", "wire")
    with pytest.raises(BackendLost, match="ring 1 does not stop: no"):
        stubborn.stop(1)


def test_the_numbers_are_those_of_linux() -> None:
    assert sorted(Ioctl) == [
        0xAF01, 0x4004AF61, 0x4008AF00, 0x4008AF03, 0x4008AF10, 0x4008AF12, 0x4008AF20, 0x4008AF21, 0x4008AF22,
        0x4008AF30, 0x4008AF60, 0x4028AF11, 0x8008AF00, 0xC008AF12,
    ]  # fmt: skip
