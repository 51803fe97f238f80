"""vhost: a virtio device of any type whose data a back end moves: a program, or the kernel."""

from bellwire.bundled.vhost.device import Vhost

__all__ = ["Vhost"]
