"""A virtio device over PCI: initialization, queues, interrupts. A device type derives from it."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

from bellwire.declare.interrupts import MsiX
from bellwire.declare.option import Option
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.errors import GuestError
from bellwire.virtio.status import Cause, Feature, Status
from bellwire.virtio.transport import BAR, BELL, MOST_QUEUES, PCI_CFG, PCI_CFG_DATA, Transport
from bellwire.virtio.virtqueue import NO_VECTOR, Virtqueue

VENDOR = 0x1AF4
FIRST_ID = 0x1040
_TRANSPORT: set[int] = {Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.VERSION_1, Feature.ACCESS_PLATFORM}


class VirtioDevice(Transport):
    """The base of a device type.

    Class keywords beside those of :class:`PciDevice`: ``kind`` is the virtio device id (§5), ``queues`` how
    many queues it can have, ``queue_size`` how large each can be. To override: :meth:`features`,
    :meth:`notified`, and where needed :meth:`started`, :meth:`stopped`, :attr:`queue_count`.
    """

    packed = Option(True, help="offer packed rings too")

    accepted = Saved(0)
    """The driver's features, as bits."""
    queue_state = SavedBytes(ctypes.sizeof(Virtqueue))

    largest_queue: ClassVar[int] = 256
    most_queues: ClassVar[int] = 1

    def __init_subclass__(
        cls, *, kind: int | None = None, queues: int = 1, queue_size: int = 256, **keywords: Any
    ) -> None:
        if kind is not None:
            assert queues <= MOST_QUEUES
            known = {"vendor": VENDOR, "device": FIRST_ID + kind, "revision": 1}
            keywords = (
                known | {"no_soft_reset": False} | keywords
            )  # Linux restores only a driver that is told of a reset
            cls.most_queues, cls.largest_queue = queues, queue_size
            cls.irq = MsiX(queues + 1)
            cls.queue_state = SavedBytes(queues * ctypes.sizeof(Virtqueue))
            for name in ("irq", "queue_state"):
                vars(cls)[name].__set_name__(cls, name)
        super().__init_subclass__(**keywords)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.virtqueues = [
            Virtqueue.at(self.queue_state, index, self) for index in range(min(self.queue_count, self.most_queues))
        ]
        self.negotiated: frozenset[int] = frozenset()
        """Features that both sides have agreed on."""
        self.running = False
        """Whether queues may be touched: the driver is ready, and nothing has gone wrong."""
        self.ring_by_event(Transport.notify, len(self.virtqueues))

    # -- what a device type says and does

    @property
    def queue_count(self) -> int:
        """How many queues it has, with the options that it was given."""
        return self.most_queues

    def features(self) -> set[int]:
        """The bits that the device type offers (§2.2), those of the transport left out. Override it."""
        return set()

    def notified(self, queue: Virtqueue) -> None:
        """The driver has made buffers available. Override it."""

    def started(self) -> None:
        """The driver is ready (DRIVER_OK), or was when a snapshot that was put back was taken. Override it."""

    def stopped(self) -> None:
        """Nothing is under way any more: there was a reset, or a snapshot was put back. Override it.

        Queues are void, and registers and saved fields have the values that they should have. Called before the
        first driver too.
        """

    def close(self) -> None:
        """The end; let go of the device's state. Who overrides it calls it last."""
        self.virtqueues.clear()

    # -- what a device type may ask for

    def attend(self, queue: Virtqueue) -> None:
        """Have :meth:`notified` look at ``queue``; a GuestError from there ends in DEVICE_NEEDS_RESET."""
        if self.running and queue.enabled:
            try:
                self.notified(queue)
            except GuestError as error:
                raise self.broken(str(error)) from error

    def configuration_changed(self) -> None:
        """Tell the driver that fields of the configuration have other values now (§2.5, §4.1.5.4)."""
        self.config_generation += 1
        if Status.DRIVER_OK in self.device_status:
            self.interrupt(self.config_msix_vector, Cause.CONFIGURATION)

    def broken(self, why: str) -> GuestError:
        """Set DEVICE_NEEDS_RESET (§2.1.2); what comes back is to be raised, and so to be logged."""
        if Status.NEEDS_RESET not in self.device_status:
            self.running = False
            self.device_status |= Status.NEEDS_RESET
            self.configuration_changed()
            why += "; the device needs a reset"
        return GuestError(why)

    def interrupt(self, vector: int, cause: Cause = Cause.QUEUE) -> None:
        """By MSI-X, or by the line and the ISR status (§4.1.5.3, §4.1.5.4)."""
        if not self.bus_master:
            return
        if self.irq.enabled:
            if vector != NO_VECTOR:
                self.irq[vector].trigger()
        else:
            self.isr |= cause
            self.line.high()

    # -- initialization (§3.1.1)

    def reset(self) -> None:
        """A PCI reset."""
        self.renew()

    def renew(self) -> None:
        """A virtio reset (§2.4): registers and saved fields as after power-on; config space and MSI-X stay."""
        self.running = False
        self.negotiated = frozenset()
        self.reset_registers(keep=[plan.bar for index, plan in self.layout.bars.items() if index != BAR])
        for queue in self.virtqueues:
            queue.clear(self.largest_queue)
        self.line.low()
        self.stopped()

    def restored(self) -> None:
        """Make again what a snapshot does not have."""
        for queue in self.virtqueues:
            queue.forget()
        self.stopped()
        status = self.device_status
        self.negotiated = _bits(self.accepted) if Status.FEATURES_OK in status else frozenset()
        self.running = Status.DRIVER_OK in status and Status.NEEDS_RESET not in status
        if self.running:
            self.started()
            for queue in self.virtqueues:  # a notification may have been under way
                self.after(0, self.attend, queue)

    @Transport.device_status.write
    def advance_status(self, written: Status) -> None:
        """The driver goes on; only a reset ever goes back (§2.1.1)."""
        before = self.device_status
        if not written:
            self.renew()
            return
        now = before | written & ~Status.NEEDS_RESET
        if Status.FEATURES_OK in now & ~before and not self.agree_on_features():
            now &= ~Status.FEATURES_OK
        if Status.FEATURES_OK not in now:
            now &= ~Status.DRIVER_OK
        self.device_status = now
        if Status.DRIVER_OK in now & ~before and Status.NEEDS_RESET not in now:
            self.running = True
            self.started()

    def offered(self) -> set[int]:
        """All bits that are offered. NOTIFICATION_DATA never is: a doorbell's value is lost on the way."""
        return self.features() | _TRANSPORT | ({Feature.RING_PACKED} if self.packed else set())

    def agree_on_features(self) -> bool:
        """Whether the driver's features will do (§2.2.2, §6.1)."""
        chosen = _bits(self.accepted)
        if Feature.VERSION_1 not in chosen or not chosen <= self.offered():
            self.warn("features refused: %#x", self.accepted)
            return False
        if self.dma.by_message:  # Linux ignores DEVICE_NEEDS_RESET, and would wait for ever
            self.warn(
                "features refused: virtqueues lie in guest memory, which the client has not shared "
                "(QEMU: -object memory-backend-memfd,share=on)"
            )
            return False
        self.negotiated = chosen
        return True

    @Transport.device_feature.read
    def read_offered(self) -> int:
        """32 bits of them at a time (§4.1.4.3)."""
        return _word(sum(1 << bit for bit in self.offered()), self.device_feature_select)

    @Transport.driver_feature.read
    def read_accepted(self) -> int:
        """What the driver has written there."""
        return _word(self.accepted, self.driver_feature_select)

    @Transport.driver_feature.write
    def accept_features(self, word: int) -> None:
        """Bits beyond 63 are none; they are settled once FEATURES_OK is set."""
        select = self.driver_feature_select
        if select < 2 and Status.FEATURES_OK not in self.device_status:
            self.accepted = self.accepted & ~(0xFFFF_FFFF << 32 * select) | word << 32 * select

    # -- queues, one at a time behind queue_select (§4.1.4.3)

    @property
    def selected(self) -> Virtqueue | None:
        """The queue that the registers speak of."""
        index = self.queue_select
        return self.virtqueues[index] if index < len(self.virtqueues) else None

    @Transport.num_queues.read
    def count_queues(self) -> int:
        """How many there are."""
        return len(self.virtqueues)

    @Transport.queue_select.write
    def show_queue(self, _: int = 0) -> None:
        """Bring the registers up to date with the queue selected; all of them are 0 where there is none."""
        queue = self.selected
        self.queue_msix_vector = queue.vector if queue else 0
        self.queue_enable = queue.enabled if queue else 0
        self.queue_notify_off = queue.index if queue else 0
        self.queue_desc = queue.desc if queue else 0
        self.queue_driver = queue.driver if queue else 0
        self.queue_device = queue.device_area if queue else 0

    @Transport.queue_size.read
    def read_queue_size(self) -> int:
        """How large it is, or can be until it is enabled."""
        return self.selected.size if self.selected else 0

    @Transport.queue_size.write
    def choose_queue_size(self, size: int) -> None:
        """The driver may want a smaller one."""
        if self.selected and not self.selected.enabled:
            self.selected.size = size

    @Transport.queue_msix_vector.write
    @Transport.queue_desc.write
    @Transport.queue_driver.write
    @Transport.queue_device.write
    def configure_queue(self, _: int) -> None:
        """Where a queue lies, until it is enabled; its vector at any time, NO_VECTOR where there is no such."""
        queue = self.selected
        if queue is not None:
            queue.vector = self.usable_vector(self.queue_msix_vector)
            if not queue.enabled:
                queue.desc, queue.driver, queue.device_area = self.queue_desc, self.queue_driver, self.queue_device
        self.show_queue()

    @Transport.queue_enable.write
    def enable_queue(self, value: int) -> None:
        """Only a reset disables it again."""
        queue = self.selected
        if queue is not None and value == 1 and not queue.enabled:
            queue.enable()
            self.show_queue()

    # -- interrupts and doorbells

    @Transport.config_msix_vector.write
    def choose_config_vector(self, vector: int) -> None:
        """For changes of the configuration."""
        self.config_msix_vector = self.usable_vector(vector)

    def usable_vector(self, vector: int) -> int:
        """A vector that exists, or NO_VECTOR: the driver reads it back to see (§4.1.5.1.2)."""
        return vector if vector < len(self.irq) else NO_VECTOR

    @Transport.isr.read
    def acknowledge_isr(self) -> int:
        """Reading lowers the line and clears the bits (§4.1.4.5)."""
        self.line.low()
        return self.isr

    @Transport.notify.ring
    def rung(self, offset: int) -> None:
        """A doorbell, by its place (§4.1.4.4)."""
        index = offset // BELL
        if index < len(self.virtqueues):
            self.attend(self.virtqueues[index])

    @Transport.notify.write
    def rung_by_message(self, offset: int, _size: int, _value: int) -> None:
        """The same where the client has no ioeventfds."""
        self.rung(offset)

    # -- the BAR through config space (VIRTIO_PCI_CAP_PCI_CFG), for drivers that cannot map it (§4.1.4.9)

    @Transport.pci_cfg.read
    def read_through(self, offset: int, size: int) -> None:
        """A read of its data reads the BAR first."""
        if offset + size > PCI_CFG_DATA and (place := self.behind_pci_cfg()):
            data = self.read_bar(*place)
            self.pci_cfg[PCI_CFG_DATA : PCI_CFG_DATA + len(data)] = data

    @Transport.pci_cfg.write
    def write_through(self, offset: int, size: int) -> None:
        """A write to its data goes on to the BAR."""
        if offset + size > PCI_CFG_DATA and (place := self.behind_pci_cfg()):
            bar, start, length = place
            self.write_bar(bar, start, bytes(self.pci_cfg[PCI_CFG_DATA : PCI_CFG_DATA + length]))

    def behind_pci_cfg(self) -> tuple[int, int, int] | None:
        """BAR, offset and length, where they make sense. Config space is no BAR: the capability would show itself."""
        bar, offset, length = PCI_CFG.unpack_from(self.pci_cfg)
        size = self.layout.bars[bar].bar.size if bar in self.layout.bars else 0
        if length in (1, 2, 4) and not offset % length and offset + length <= size:
            return bar, offset, length
        return None


def _bits(mask: int) -> frozenset[int]:
    return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def _word(mask: int, select: int) -> int:
    return mask >> 32 * select & 0xFFFF_FFFF
