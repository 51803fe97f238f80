"""virtio-net: a network card."""

from bellwire.bundled.virtio_net.device import VirtioNet

__all__ = ["VirtioNet"]
