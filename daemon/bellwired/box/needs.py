"""What a device needs of the system, by its options: files, folders, sockets, calls.

The options of a bundled device are known before the box closes, and say what it opens. A plugin is imported inside the
box, so its options are mere texts by then: a text that is the path of an existing file lets the device read and write
that file, the path of a folder lets it read what is in it, and the name of a stream, such as ``pty:/run/line``, lets it
open that stream. ``unix:/run/sock`` may be a stream or a vhost back end: the device may connect if somebody listens
there already, and may listen itself if not. Everything else is the operator's to add.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from bellwire import OptionError, PciDevice
from bellwire.bundled.nvme.device import images
from bellwire.bundled.vhost.device import UNIX, VHOST_NET, VHOST_VSOCK
from bellwire.bundled.virtio_console.device import named
from bellwire.declare.option import parse_options
from bellwire.network.interface import Settings, is_set_up
from bellwire.paths import Place, make_folders
from bellwire.stream import stream_fault
from bellwire.vhost import kernel
from bellwired.box.landlock import FOLDER, LINKS, NAMES, READ, RUN, SOCKETS, WRITE, Fs
from bellwired.box.remains import is_live, remove_made
from bellwired.sources import INIT

TUN = Path("/dev/net/tun")
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_MKNOD = 12, 21, 27


@dataclass
class Needs:
    """``rules`` are for Landlock. ``calls`` are groups or single calls of :mod:`bellwired.box.calls`."""

    rules: list[tuple[Path, Fs]] = field(default_factory=list)
    calls: set[str] = field(default_factory=set)
    capabilities: set[int] = field(default_factory=set)
    network: bool = False
    """It uses the host's network."""
    mounts: bool = False
    """It mounts file systems, which Landlock forbids."""
    netlink: bool = False
    """It sets an interface up."""
    made: list[Path] = field(default_factory=list)
    """Sockets and links that it makes. It may not remove them: whatever watches over it does."""
    files: list[tuple[Path, bool]] = field(default_factory=list)
    """Images and files, each with whether it is made if it does not exist."""
    images: list[Path] = field(default_factory=list)
    """Those of ``files`` that a successor has open already."""
    folders: list[Path] = field(default_factory=list)

    def prepare(self, *, succeeds: bool = False) -> None:
        """Make the files and folders that the device would make, and remove stale sockets and links.

        A device that ``succeeds`` another process makes no images: it goes on with those that were open. Failures are
        left to the device, which reports them better. A socket with a live server is an OSError.
        """
        for path, make in self.files:
            with contextlib.suppress(OSError):
                if make and not (succeeds and path in self.images):
                    with Place(path) as place:
                        os.close(place.open(os.O_RDWR | os.O_CREAT, 0o600))
        for folder in self.folders:
            with contextlib.suppress(OSError):
                make_folders(folder.parent)
                with Place(folder) as place:
                    place.make_folder(0o700)
        if self.netlink:
            import_module("pyroute2")  # it looks into /proc when it is imported
        for path in self.made:
            with contextlib.suppress(FileNotFoundError):
                remove_made(path)


def of_bundled(kind: type[PciDevice], given: Mapping[str, Any]) -> Needs:
    """What a bundled device with these options needs. Nothing, if the options are wrong: it will say so itself."""
    needs = Needs()
    try:
        options = {name: option.default for name, option in kind.layout.options.items()}
        options |= parse_options(kind.layout.options, given, kind.name)
    except OptionError:
        return needs
    if kind.name in ("nvme", "virtio-blk"):
        image = options["image"]
        paths = images(image) if isinstance(image, str) else [image] if image != Path() else []
        _disks(needs, paths, options)
    if kind.name == "nvme" and options["store"] != Path():
        needs.folders.append(options["store"])
        needs.rules.append((options["store"], FOLDER))
    elif kind.name == "serial":
        _stream(needs, options["backend"])
    elif kind.name == "virtio-console":
        for _, stream in named(options["ports"]):
            _stream(needs, stream)
    elif kind.name == "virtio-net":
        _network(needs, options)
    elif kind.name == "vhost":
        _back_end(needs, options)
    return needs


def of_plugin(files: Iterable[Path], given: Mapping[str, Any]) -> Needs:
    """What a plugin needs whose first file is one of ``files``: its code, and the paths among its options."""
    needs = Needs()
    for file in files:
        if file.exists():
            needs.rules += _code(file)
    for value in given.values():
        if isinstance(value, str) and value and "\0" not in value:
            if value.startswith(f"{UNIX}:") and is_live(Path(value.removeprefix(f"{UNIX}:"))):
                _program(needs, value.removeprefix(f"{UNIX}:"))
                continue
            if stream_fault(value) is None:
                _stream(needs, value)
                continue
            path = Path(value)
            if path.is_dir():
                needs.rules.append((path, READ))
            elif path.exists():
                needs.rules.append((path, WRITE))
                needs.calls |= {"aio", "block"}
    return needs


def _code(file: Path) -> Iterator[tuple[Path, Fs]]:
    """A package with all that is in its folder; and the modules, packages and ROMs beside it, or a single file."""
    package = file.name == INIT
    folder = file.parent.parent if package else file.parent
    yield file.parent if package else file, READ
    yield folder, NAMES  # an image may lie there too
    with contextlib.suppress(OSError):
        for beside in os.scandir(folder):
            path = Path(beside.path)
            if path.exists() if path.suffix in (".py", ".so", ".rom") else Path(path, INIT).exists():
                yield path, READ


def granted(needs: Needs, words: Iterable[str], read: Iterable[Path], write: Iterable[Path]) -> None:
    """Add what the operator has granted in the device's file."""
    words = set(words)
    needs.calls |= words
    needs.network |= "network" in words
    needs.rules += [(path, RUN if "processes" in words else READ) for path in read]
    needs.rules += [(path, FOLDER | SOCKETS | LINKS) for path in write]


def _disks(needs: Needs, paths: Iterable[Path], options: Mapping[str, Any]) -> None:
    needs.calls |= {"aio", "block"} if options["direct"] else {"block"}
    for path in paths:
        needs.images.append(path)
        needs.files.append((path, bool(options["size"]) and not options["readonly"]))
        needs.rules.append((path, READ if options["readonly"] else WRITE))


def _stream(needs: Needs, text: str) -> None:
    """One of the backends of :mod:`bellwire.stream`."""
    kind, _, place = text.partition(":")
    path = Path(place)
    if kind == "null":
        return
    needs.calls |= {"pty", "listening"}
    needs.rules += [(Path("/dev/ptmx"), WRITE), (Path("/dev/pts"), WRITE)]
    if kind == "connect":
        needs.calls.add("connecting")
    elif kind == "file":
        needs.files.append((path, True))
        needs.rules.append((path, WRITE))
    elif place:
        needs.made.append(path)
        needs.rules.append((path.parent, SOCKETS if kind == "unix" else LINKS))


def _back_end(needs: Needs, options: Mapping[str, Any]) -> None:
    """A vhost back end."""
    kind, _, place = options["backend"].partition(":")
    if kind == UNIX:
        _program(needs, place)
    elif kind == VHOST_NET:
        _tap(needs, place, Settings(mtu=options["mtu"]))
        _kernel(needs, kernel.NET)
    elif kind == VHOST_VSOCK:
        _kernel(needs, kernel.VSOCK)


def _program(needs: Needs, place: str) -> None:
    """A back end that is a program. The device connects in the box, again and again if it must: its folder stays."""
    needs.calls.add("connecting")
    needs.rules.append((Path(place).absolute().parent, NAMES))


def _kernel(needs: Needs, node: Path) -> None:
    """A back end of the kernel's."""
    needs.calls.add("vhost")
    needs.rules.append((node, WRITE))


def _tap(needs: Needs, name: str, settings: Settings) -> None:
    needs.network = True
    needs.netlink = settings.any and not is_set_up(name, settings)
    needs.calls.add("tap")
    needs.rules += [(TUN, WRITE), (Path("/sys/class/net"), READ), (Path("/sys/devices/virtual/net"), READ)]
    needs.capabilities.add(CAP_NET_ADMIN)


def _network(needs: Needs, options: Mapping[str, Any]) -> None:
    local, stream = options["local"], options["stream"]
    if options["tap"]:
        _tap(needs, options["tap"], Settings(options["namespace"], options["bridge"], options["mtu"], options["up"]))
        if options["namespace"] or options["macvtap"]:
            needs.netlink = needs.mounts = True
            needs.calls.add("mounting")
            needs.capabilities |= {CAP_SYS_ADMIN, CAP_MKNOD}
        if options["offload"] == VHOST_NET:
            _kernel(needs, kernel.NET)
    if options["dgram"] != Path() or local != Path():
        needs.calls.add("datagrams")
    if stream != Path():
        needs.calls.add("listening" if options["listen"] else "connecting")
    for path in (local, stream if options["listen"] else Path()):
        if path != Path():
            needs.made.append(path)
            needs.rules.append((path.parent, SOCKETS))
