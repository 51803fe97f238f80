"""The micro guests: small freestanding programs that drive a device from inside a machine.

``bell`` rings every kind of doorbell and times it; ``bell3`` is the same with its loop in ring 3; ``edu``
drives QEMU's edu device; ``pci`` moves BARs about; ``blk`` reads a virtio disk; ``nvme`` rewrites the first blocks of
an NVMe one. The images come prebuilt (``bin/``); `bellwire_vmm.guests.build` makes them from ``src/``, and
`bellwire_vmm.guests.layout` says how to talk to them.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from bellwire_vmm.errors import GuestImageError

IMAGES = Path(__file__).parent / "bin"


def names() -> list[str]:
    """The guests that come with the package."""
    return sorted(path.stem for path in IMAGES.glob("*.bin"))


def image(guest: str | Path) -> bytes:
    """The flat image of a guest, by its name, or by a path (anything with a slash or a suffix)."""
    path = Path(guest)
    if isinstance(guest, str) and path.name == guest and not path.suffix:
        path = IMAGES / f"{guest}.bin"
        if not path.is_file():
            near = difflib.get_close_matches(guest, names(), n=1)
            meant = f"did you mean {near[0]}? There" if near else "there"
            raise GuestImageError(
                f"there is no guest {guest!r}: {meant} are {', '.join(names())}; or give a path with a / or a suffix"
            )
    try:
        return path.read_bytes()
    except OSError as error:
        raise GuestImageError(f"cannot read the guest image {path}: {error.strerror}") from None
