"""The base of virtio devices over PCI: initialization, queues and interrupts."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

from bellwire.declare.interrupts import MsiX
from bellwire.declare.option import Option
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.errors import GuestError, StateError
from bellwire.virtio.faults import VIRTIO_FAULTS
from bellwire.virtio.inflight import MOST_SLOTS, Inflight, size_of
from bellwire.virtio.status import Cause, Feature, Status
from bellwire.virtio.transport import BAR, BELL, MOST_QUEUES, PCI_CFG, PCI_CFG_DATA, Transport
from bellwire.virtio.virtqueue import NO_VECTOR, Virtqueue

VENDOR = 0x1AF4
FIRST_ID = 0x1040
_TRANSPORT: set[int] = {Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.VERSION_1, Feature.ACCESS_PLATFORM}


class VirtioDevice(Transport, faults=VIRTIO_FAULTS, repeats=True):
    """The base of a virtio device type.

    It has these class keywords, besides those of :class:`PciDevice`: ``kind`` is the virtio device id (§5), ``queues``
    the largest number of queues, ``queue_size`` the largest size of a queue. A subclass overrides :meth:`features` and
    :meth:`notified`, and if needed :meth:`started`, :meth:`stopped` and :attr:`queue_count`.
    """

    packed = Option(True, help="offer packed virtqueues too")

    accepted = Saved(0)
    """The features that the driver has accepted, as bits."""
    queue_state = SavedBytes(ctypes.sizeof(Virtqueue))
    queue_journals = SavedBytes(size_of(1))

    largest_queue: ClassVar[int]
    most_queues: ClassVar[int]

    negotiated: frozenset[int]
    """The features that device and driver have agreed on."""
    running: bool
    """Whether the device may use queues: the driver is ready, and DEVICE_NEEDS_RESET is not set."""

    def __init_subclass__(
        cls, *, kind: int | None = None, queues: int = 1, queue_size: int = 256, **keywords: Any
    ) -> None:
        if kind is not None:
            assert queues <= MOST_QUEUES
            assert queue_size <= MOST_SLOTS
            known = {"vendor": VENDOR, "device": FIRST_ID + kind, "revision": 1}
            keywords = (
                known | {"no_soft_reset": False} | keywords
            )  # Linux restores the driver only if it knows that D3hot has reset the device
            cls.most_queues, cls.largest_queue = queues, queue_size
            cls.irq = MsiX(queues + 1)
            cls.queue_state = SavedBytes(queues * ctypes.sizeof(Virtqueue))
            cls.queue_journals = SavedBytes(queues * size_of(queue_size))
            for name in ("irq", "queue_state", "queue_journals"):
                vars(cls)[name].__set_name__(cls, name)
        super().__init_subclass__(**keywords)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._vectors = self.irq  # at hand: each request ends with an interrupt
        self._triggers = [self.irq[number].trigger for number in range(len(self.irq))]
        each, slots = size_of(self.largest_queue), self.largest_queue
        self.virtqueues = [
            Virtqueue.at(
                self.queue_state, index, self, Inflight(self.queue_journals[index * each : (index + 1) * each], slots)
            )
            for index in range(min(self.queue_count, self.most_queues))
        ]
        self.ring_by_event(Transport.notify, len(self.virtqueues))

    # -- what a device type overrides

    @property
    def queue_count(self) -> int:
        """The number of queues. Override it if options change the number."""
        return self.most_queues

    def features(self) -> set[int]:
        """The feature bits of the device type (§2.2), without those of the transport. Override it."""
        return set()

    def notified(self, queue: Virtqueue) -> None:
        """The driver has made buffers available in ``queue``. Override it."""

    def started(self) -> None:
        """The driver is ready (DRIVER_OK), or a snapshot with a ready driver has been restored. Override it."""

    def stopped(self) -> None:
        """There was a reset, or a snapshot has been restored: drop all work in progress. Override it.

        No queue is usable. Registers and saved fields have their values after the reset, or those of the snapshot. It
        is also called once before the first driver.
        """

    def memory_changed(self) -> None:
        """Return the buffers that were finished while their ring was not mapped, and do what was to be done then."""
        for queue in self.virtqueues:
            queue.flush()
            if queue.missed and queue.find():
                queue.missed = False
                self.after(0, self.attend, queue)

    def close(self) -> None:
        """Release the device's state. A subclass that overrides it calls it at its end."""
        for queue in self.virtqueues:
            queue.take_back()
        self.virtqueues.clear()

    def wires_changed(self) -> None:
        """Renew the descriptors of queues that are in other hands. A subclass that overrides it calls it too."""
        for queue in self.virtqueues:
            if queue.handover is not None:
                queue.handover.renew()

    # -- what a device type calls

    def attend(self, queue: Virtqueue) -> None:
        """Call :meth:`notified` for ``queue``, if the driver is ready. A GuestError there sets DEVICE_NEEDS_RESET."""
        if queue.handover is not None:
            queue.handover.ring()
        elif self.running and queue.enabled:
            try:
                self.notified(queue)
            except GuestError as error:
                raise self.broken(str(error)) from error

    def lend_doorbell(self, queue: Virtqueue) -> int | None:
        """The eventfd of a queue's doorbell, for other hands (:meth:`Virtqueue.hand_over`)."""
        return self.lend(Transport.notify, BELL * queue.index)

    def take_back_doorbell(self, queue: Virtqueue) -> None:
        """Hear of the queue's doorbell again."""
        self.take_back(Transport.notify, BELL * queue.index)

    def configuration_changed(self) -> None:
        """Tell the driver that fields of the configuration have changed (§2.5, §4.1.5.4)."""
        self.config_generation += 1
        if Status.DRIVER_OK in self.device_status:
            self.interrupt(self.config_msix_vector, Cause.CONFIGURATION)

    def broken(self, why: str) -> GuestError:
        """Set DEVICE_NEEDS_RESET (§2.1.2). The caller raises the returned error, so that it is logged."""
        if Status.NEEDS_RESET not in self.device_status:
            self.running = False
            self.device_status |= Status.NEEDS_RESET
            self.configuration_changed()
            why += "; the device needs a reset"
        return GuestError(why)

    def interrupt(self, vector: int, cause: Cause = Cause.QUEUE) -> None:
        """Interrupt the driver by MSI-X, or by INTx and the ISR status (§4.1.5.3, §4.1.5.4)."""
        if not self.bus_master:
            return
        if self._vectors.enabled:
            if vector != NO_VECTOR:
                self._triggers[vector]()
        else:
            self.isr |= cause
            self.line.high()

    # -- initialization (§3.1.1)

    def reset(self) -> None:
        """Handle a PCI reset."""
        self.renew()

    def renew(self) -> None:
        """Do a virtio reset (§2.4): registers and saved fields get their reset values; config space and MSI-X stay."""
        self.running = False
        self.negotiated = frozenset()
        self.reset_registers(keep=[plan.bar for index, plan in self.layout.bars.items() if index != BAR])
        for queue in self.virtqueues:
            queue.clear(self.largest_queue)
        self.line.low()
        self.stopped()

    def check_state(self) -> None:
        """Refuse a snapshot whose features or queues cannot be. A subclass that overrides it calls it first."""
        known = Status.FEATURES_OK not in self.device_status or _bits(self.accepted) <= self.offered()
        if not (0 <= self.accepted < 1 << 64 and known):
            raise StateError(f"the snapshot has features {self.accepted:#x}")
        for queue in self.virtqueues:
            if not queue.is_possible:
                raise StateError(
                    f"the snapshot has {queue} of {queue.size} slots, next {queue.next}, used {queue.used}"
                )

    def restored(self) -> None:
        """Rebuild what a snapshot does not contain. Requests that were under way in it are done again."""
        for queue in self.virtqueues:
            queue.resume()
        self.stopped()
        status = self.device_status
        self.negotiated = _bits(self.accepted) if Status.FEATURES_OK in status else frozenset()
        self.running = Status.DRIVER_OK in status and Status.NEEDS_RESET not in status
        if self.running:
            self.started()
            for queue in self.virtqueues:  # a notification may have been under way when the snapshot was taken
                self.after(0, self.attend, queue)

    def recovered(self, torn: bool) -> None:
        """Go on after a process has died: a reset that was cut short is done again, and so are requests.

        Which interrupts the driver has got is not known, so it gets all of them.
        """
        if torn and not self.device_status:
            self.renew()
            return
        self.restored()
        if self.running:
            self.interrupt(self.config_msix_vector, Cause.CONFIGURATION)
            for queue in self.virtqueues:
                if queue.enabled:
                    self.interrupt(queue.vector)

    def failed(self) -> None:
        """Tell the driver by DEVICE_NEEDS_RESET (§2.1.2), and by every interrupt: which it has chosen is lost."""
        self.device_status = Status.NEEDS_RESET
        self.isr = Cause.CONFIGURATION
        if self.bus_master and self.irq.enabled:
            for number in range(len(self.irq)):
                self.irq[number].trigger()
        elif self.bus_master:
            self.line.high()

    @Transport.device_status.write
    def advance_status(self, written: Status) -> None:
        """The driver writes the device status. It sets more bits; only a reset clears any (§2.1.1)."""
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
        """All feature bits on offer. NOTIFICATION_DATA is never one: an ioeventfd loses the value of a doorbell."""
        return self.features() | _TRANSPORT | ({Feature.RING_PACKED} if self.packed else set())

    def agree_on_features(self) -> bool:
        """Whether the device can work with the features that the driver has accepted (§2.2.2, §6.1)."""
        chosen = _bits(self.accepted)
        if Feature.VERSION_1 not in chosen or not chosen <= self.offered():
            self.warn("features refused: %#x", self.accepted)
            return False
        if self.dma.by_message:  # refused here: Linux ignores DEVICE_NEEDS_RESET later, and would wait for ever
            self.warn(
                "features refused: virtqueues lie in guest memory, which the client has not shared "
                "(QEMU: -object memory-backend-memfd,share=on)"
            )
            return False
        self.negotiated = chosen
        return True

    @Transport.device_feature.read
    def read_offered(self) -> int:
        """The 32 offered feature bits that the driver has selected (§4.1.4.3)."""
        return _word(sum(1 << bit for bit in self.offered()), self.device_feature_select)

    @Transport.driver_feature.read
    def read_accepted(self) -> int:
        """The 32 accepted feature bits that the driver has selected."""
        return _word(self.accepted, self.driver_feature_select)

    @Transport.driver_feature.write
    def accept_features(self, word: int) -> None:
        """The driver accepts features. Bits above 63 are ignored, and so are all writes after FEATURES_OK."""
        select = self.driver_feature_select
        if select < 2 and Status.FEATURES_OK not in self.device_status:
            self.accepted = self.accepted & ~(0xFFFF_FFFF << 32 * select) | word << 32 * select

    # -- queues, one at a time behind queue_select (§4.1.4.3)

    @property
    def selected(self) -> Virtqueue | None:
        """The queue that ``queue_select`` selects, or None if there is no such queue."""
        index = self.queue_select
        return self.virtqueues[index] if index < len(self.virtqueues) else None

    @Transport.num_queues.read
    def count_queues(self) -> int:
        """The number of queues, for the driver."""
        return len(self.virtqueues)

    @Transport.queue_select.write
    def show_queue(self, _: int = 0) -> None:
        """Load the registers of the selected queue. All of them are 0 if there is no such queue."""
        queue = self.selected
        self.queue_msix_vector = queue.vector if queue else 0
        self.queue_enable = queue.enabled if queue else 0
        self.queue_notify_off = queue.index if queue else 0
        self.queue_desc = queue.desc if queue else 0
        self.queue_driver = queue.driver if queue else 0
        self.queue_device = queue.device_area if queue else 0

    @Transport.queue_size.read
    def read_queue_size(self) -> int:
        """The size of the selected queue; the largest possible one until the driver chooses."""
        return self.selected.size if self.selected else 0

    @Transport.queue_size.write
    def choose_queue_size(self, size: int) -> None:
        """The driver chooses a smaller size for the selected queue."""
        if self.selected and not self.selected.enabled:
            self.selected.size = size

    @Transport.queue_msix_vector.write
    @Transport.queue_desc.write
    @Transport.queue_driver.write
    @Transport.queue_device.write
    def configure_queue(self, _: int) -> None:
        """The driver sets the addresses of a queue, until it enables it, or its vector, at any time."""
        queue = self.selected
        if queue is not None:
            queue.vector = self.usable_vector(self.queue_msix_vector)
            if not queue.enabled:
                queue.desc, queue.driver, queue.device_area = self.queue_desc, self.queue_driver, self.queue_device
        self.show_queue()

    @Transport.queue_enable.write
    def enable_queue(self, value: int) -> None:
        """The driver enables the selected queue. Only a reset disables it again."""
        queue = self.selected
        if queue is not None and value == 1 and not queue.enabled:
            queue.enable()
        self.show_queue()

    # -- interrupts and doorbells

    @Transport.config_msix_vector.write
    def choose_config_vector(self, vector: int) -> None:
        """The driver chooses the vector for changes of the configuration."""
        self.config_msix_vector = self.usable_vector(vector)

    def usable_vector(self, vector: int) -> int:
        """``vector`` if it exists, else NO_VECTOR. The driver reads the register back to see which (§4.1.5.1.2)."""
        return vector if vector < len(self.irq) else NO_VECTOR

    @Transport.isr.read
    def acknowledge_isr(self) -> int:
        """The ISR status. A read clears its bits and lowers INTx (§4.1.4.5)."""
        self.line.low()
        return self.isr

    @Transport.notify.ring
    def rung(self, offset: int) -> None:
        """The driver has rung the doorbell of the queue at ``offset`` (§4.1.4.4)."""
        index = offset // BELL
        if index < len(self.virtqueues):
            self.attend(self.virtqueues[index])

    @Transport.notify.write
    def rung_by_message(self, offset: int, _size: int, _value: int) -> None:
        """The driver has rung a doorbell, and the client has sent it as a message."""
        self.rung(offset)

    # -- the BAR through config space (VIRTIO_PCI_CAP_PCI_CFG), for drivers that cannot map it (§4.1.4.9)

    @Transport.pci_cfg.read
    def read_through(self, offset: int, size: int) -> None:
        """The driver reads pci_cfg_data: fill it from the BAR first."""
        if offset + size > PCI_CFG_DATA and (place := self.behind_pci_cfg()):
            data = self.read_bar(*place)
            self.pci_cfg[PCI_CFG_DATA : PCI_CFG_DATA + len(data)] = data

    @Transport.pci_cfg.write
    def write_through(self, offset: int, size: int) -> None:
        """The driver has written pci_cfg_data: write it to the BAR."""
        if offset + size > PCI_CFG_DATA and (place := self.behind_pci_cfg()):
            bar, start, length = place
            self.write_bar(bar, start, bytes(self.pci_cfg[PCI_CFG_DATA : PCI_CFG_DATA + length]))

    def behind_pci_cfg(self) -> tuple[int, int, int] | None:
        """The BAR, offset and length that the driver has set, or None if they are not valid."""
        bar, offset, length = PCI_CFG.unpack_from(self.pci_cfg)
        size = self.layout.bars[bar].bar.size if bar in self.layout.bars else 0
        if length in (1, 2, 4) and not offset % length and offset + length <= size:
            return bar, offset, length
        return None


def _bits(mask: int) -> frozenset[int]:
    return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def _word(mask: int, select: int) -> int:
    return mask >> 32 * select & 0xFFFF_FFFF
