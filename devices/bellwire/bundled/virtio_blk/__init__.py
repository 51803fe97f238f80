"""virtio-blk: a disk (virtio 1.2 §5.2)."""

from bellwire.bundled.virtio_blk.device import VirtioBlk

__all__ = ["VirtioBlk"]
