"""Virtio over PCI: the transport, and the base class of virtio devices.

Section numbers are of Virtual I/O Device (VIRTIO) Version 1.2. A device type derives from :class:`VirtioDevice`,
declares its configuration with :func:`field`, and handles its queues in :meth:`VirtioDevice.notified`; see
:mod:`bellwire.bundled.virtio_rng` for the smallest one.
"""

from bellwire.virtio.chain import Chain
from bellwire.virtio.device import VirtioDevice
from bellwire.virtio.status import Feature, Status
from bellwire.virtio.transport import field
from bellwire.virtio.virtqueue import Virtqueue

__all__ = ["Chain", "Feature", "Status", "VirtioDevice", "Virtqueue", "field"]
