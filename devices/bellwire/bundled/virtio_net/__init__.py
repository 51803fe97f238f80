"""virtio-net: a network card (virtio 1.2 §5.1)."""

from bellwire.bundled.virtio_net.device import VirtioNet

__all__ = ["VirtioNet"]
