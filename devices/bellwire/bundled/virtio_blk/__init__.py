"""virtio-blk: a disk."""

from bellwire.bundled.virtio_blk.device import VirtioBlk

__all__ = ["VirtioBlk"]
