"""nvme: a disk as the NVM Express Base Specification 1.4 has it."""

from __future__ import annotations

import ctypes
import uuid
from pathlib import Path

from bellwire import Aer, Option, OptionError, Saved, SavedBytes, SerialNumber, StateError
from bellwire.bundled.nvme.controller import Controller, Manner, StateViews
from bellwire.bundled.nvme.events import EventState
from bellwire.bundled.nvme.faults import NVME_FAULTS
from bellwire.bundled.nvme.features import WORDS
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.inventory import take_stock
from bellwire.bundled.nvme.journal import JOURNAL_SIZE
from bellwire.bundled.nvme.logs import ERRORS_SIZE, Counters
from bellwire.bundled.nvme.namespace import OUI
from bellwire.bundled.nvme.namespaces import MOST_IDS, Namespaces
from bellwire.bundled.nvme.queues import BATCH_STATE, CompletionQueue, SubmissionQueue
from bellwire.bundled.nvme.registers import QUEUES, Registers
from bellwire.bundled.nvme.shadow import ShadowState
from bellwire.bundled.nvme.store import Store
from bellwire.bundled.nvme.timestamp import TimestampState
from bellwire.storage import LARGEST, Disk, KeptDisks, MemoryDisk, StorageError, check_blocks
from bellwire.storage.aio import direct_pool

BLOCK_SIZES = (512, 4096)
DEFAULT_SIZE = 64 << 20


def serial_number(text: str) -> str | None:
    """What was expected, if ``text`` does not fit in Identify Controller (§5.15.2.2); else None."""
    return (
        None if len(text) <= 20 and text.isascii() and text.isprintable() else "at most 20 printable ASCII characters"
    )


class Nvme(Registers, vendor=0x1234, device=0xBE5D, class_code=0x010802, faults=NVME_FAULTS, repeats=True):
    """An NVMe controller: namespaces on raw images, block devices or memory.

    The device needs the value of a doorbell write, since it is the new tail or head of a queue. So doorbells use
    ioregionfd or messages. A guest with shadow doorbells keeps the values in its memory, and an ioeventfd is enough.
    But a client asks for file descriptors only once, when it plugs the device in, long before the guest's driver runs.
    With ``doorbells=shadow`` the user promises that the guest uses shadow doorbells, and the device offers ioeventfds
    for I/O doorbells from the start. Linux keeps this promise: it sets shadow doorbells up before its first I/O.
    Firmware does not, and its rings are dropped and logged. A client without ioeventfds, such as QEMU, sends values
    by messages in any case, and so works with every guest.
    """

    image = Option(
        "",
        help="raw files or block devices, one for each namespace, separated by commas (,, in a name); default: memory",
    )
    size = Option(
        0,
        least=0,
        most=LARGEST,
        help="bytes of each namespace: of memory (default 64M), or of images that are created",
    )
    shrink = Option(False, help="allow the next size= to make namespaces smaller, which destroys data")
    block_size = Option(512, choices=BLOCK_SIZES, help="bytes of a logical block")
    readonly = Option(False, help="refuse every write")
    serial = Option(
        "", check=serial_number, help="serial number, at most 20 characters; default: made from the image's path"
    )
    queues = Option(QUEUES, least=1, most=QUEUES, help="I/O queue pairs that the guest may create")
    namespaces = Option(
        0,
        least=0,
        most=MOST_IDS,
        help="number of namespaces (those without an image are memory); 0: one for each image",
    )
    store = Option(Path(), help="folder for state that outlives the device (see docs/devices.md); default: memory")
    capacity = Option(0, least=0, most=LARGEST, help="bytes for namespaces that the guest creates")
    doorbells = Option(
        "value", choices=("value", "shadow"), help="shadow: by ioeventfd, for guests that use shadow doorbells"
    )
    threads = Option(4, least=1, most=QUEUES, help="threads that wait for the images")
    direct = Option(False, help="bypass the page cache (O_DIRECT)")
    incoming = Option(False, help="another device has the images, until this one goes on with its migrated state")

    errors = Aer()
    device_serial = SerialNumber(int.from_bytes(OUI) << 40)  # the rest is made from the serial number

    before = Saved(0)  # the last value of CC
    submission_state = SavedBytes((QUEUES + 1) * ctypes.sizeof(SubmissionQueue))
    completion_state = SavedBytes((QUEUES + 1) * ctypes.sizeof(CompletionQueue))
    feature_state = SavedBytes(4 * WORDS)
    counter_state = SavedBytes(ctypes.sizeof(Counters))
    error_state = SavedBytes(ERRORS_SIZE)
    event_state = SavedBytes(ctypes.sizeof(EventState))
    shadow_state = SavedBytes(ctypes.sizeof(ShadowState))
    journal_state = SavedBytes(JOURNAL_SIZE)
    timestamp_state = SavedBytes(ctypes.sizeof(TimestampState))
    batch_state = SavedBytes((QUEUES + 1) * BATCH_STATE)

    def setup(self) -> None:
        """Open the images, and build the controller."""
        state = StateViews(
            self.submission_state,
            self.completion_state,
            self.feature_state,
            self.counter_state,
            self.error_state,
            self.event_state,
            self.shadow_state,
            self.journal_state,
            self.timestamp_state,
            self.batch_state,
        )
        store = Store(self.store if self.store.name else None, self)
        try:
            identity, namespaces = self.take_stock(store)
        except BaseException:
            store.close()
            raise
        manner = Manner(self.queues, self.readonly, self.direct)
        self.controller = Controller(self, state, namespaces, identity, store, manner)
        engine = self.controller.engine
        threads = self.pool(self.threads, engine.finished)
        engine.pool = direct_pool(self, threads, engine.finished) if self.direct else threads
        if self.doorbells == "shadow":
            self.ring_by_event(Registers.io_bells, 2 * self.queues)
        self.awaits = self.incoming and bool(self.image)

    def take_stock(self, store: Store) -> tuple[ControllerIdentity, Namespaces]:
        """The controller's identity, the namespaces of the options, and those in the store."""
        serial = self.serial or self.made_up_serial()
        disks = self.open_disks(store.disks, serial)
        if not (self.serial or self.image):
            serial = store.disks.identity("namespace 1")
        identity = ControllerIdentity(0x1234, 0x1234, serial)
        spare, direct = self.capacity, self.direct
        try:
            return identity, take_stock(store, disks, self.block_size, identity.uuid, spare=spare, direct=direct)
        except BaseException:
            for disk in disks:
                disk.close()
            raise

    def check_options(self) -> None:
        """Refuse options that contradict each other."""
        check_blocks(self.size, self.block_size)
        given = len(images(self.image))
        if self.namespaces and given > self.namespaces:
            raise OptionError(f"option image: {given} images for namespaces={self.namespaces}")
        if given > MOST_IDS:
            raise OptionError(f"option image: {given} images, at most {MOST_IDS}")
        if self.incoming and self.store.name:
            raise OptionError("option incoming: two devices cannot have one store; start this one without it")

    def open_disks(self, kept: KeptDisks, serial: str) -> list[Disk]:
        """Open a disk for each namespace. If one fails, all are closed again. Memory belongs to the serial number."""
        paths = images(self.image)
        count = self.namespaces or len(paths) or 1
        disks: list[Disk] = []
        try:
            for path in paths:
                disks.append(self.open_disk(kept, f"namespace {len(disks) + 1}", path))
                if disks[-1].size < self.block_size:
                    raise StorageError(f"image {path}: {disks[-1].size} bytes, too few for a block; give size=")
            while len(disks) < count:
                name = f"namespace {len(disks) + 1}"
                disk: Disk = kept.memory(name, self.size or DEFAULT_SIZE, identity=serial)
                disk.readonly = self.readonly
                disks.append(disk)
        except BaseException:
            for disk in disks:
                disk.close()
            raise
        return disks

    def open_disk(self, kept: KeptDisks, name: str, path: Path) -> Disk:
        """Open one image as the options say. Raises a StorageError."""
        return kept.image(
            name,
            path,
            readonly=self.readonly,
            size=self.size,
            direct=self.direct,
            block=self.block_size,
            lock=not self.incoming,
        )

    def made_up_serial(self) -> str:
        """A serial number: the same for the same images, but random for memory, so that no two devices share one."""
        if self.image:
            name = uuid.uuid5(uuid.NAMESPACE_URL, str(Path(self.image).absolute())).bytes[:8]
        else:
            name = self.random_bytes(8)
        return f"BW{name.hex().upper()}"

    def reset(self) -> None:
        """Wait for the threads, which may write guest memory, then start again."""
        self.controller.engine.pool.settle()
        self.device_serial = self.controller.identity.eui64
        self.controller.power_on()

    def saving(self) -> None:
        """Refuse a snapshot that would lack the content of a namespace in memory."""
        for disk in self.controller.namespaces.disks:
            if isinstance(disk, MemoryDisk):
                disk.check_snapshot()

    def halted(self) -> None:
        """Let the device that goes on elsewhere have the images."""
        for disk in self.controller.namespaces.disks:
            disk.unlock()
        self.awaits = bool(self.image)

    def resumed(self) -> None:
        """Have the images back, or from the device that has moved here."""
        for disk in self.controller.namespaces.disks:
            disk.lock()
        self.awaits = False

    def check_state(self) -> None:
        """Refuse a snapshot whose queues or commands cannot be."""
        self.controller.check_state()

    def restored(self) -> None:
        """Do the commands again that were under way."""
        self.controller.engine.pool.settle()
        self.controller.restored()

    def recovered(self, torn: bool) -> None:
        """Go on after a process has died."""
        disks = [space.disk for space in self.controller.namespaces.allocated]
        if any(isinstance(disk, MemoryDisk) and not disk.inherited for disk in disks):
            raise StateError("a namespace was memory of the process that has died")
        self.before = self.cc
        self.controller.engine.pool.settle()
        self.controller.recovered()

    def failed(self) -> None:
        """Tell the host by CSTS.CFS (§9.5): only a controller reset clears it."""
        self.controller.break_down("the process that served the controller has died")

    def close(self) -> None:
        """End the threads, save the store, and close the images."""
        self.controller.engine.pool.close()
        self.controller.close()

    @size.set
    def resize(self, size: int = 0) -> None:
        """Change the size of the namespaces while the guest runs. 0 takes over the present size of the images."""
        self.controller.resize(size, shrink=self.shrink)
        if self.shrink:
            self.change("shrink", False)  # the permission is for one change

    @shrink.set
    def allow_shrinking(self, shrink: bool) -> None:
        """Accept the option. It has an effect only on the next change of the size."""

    @Registers.cc.write
    def configure(self, _: int) -> None:
        """CC: the host starts, stops or shuts down the controller (§3.1.5)."""
        before, self.before = self.before, self.cc
        self.controller.configure(before, self.cc)

    @Registers.intms.write
    def mask(self, _: int) -> None:
        """INTMS: mask interrupts, for MSI and INTx (§3.1.3)."""
        self.controller.queues.interrupts.level()

    @Registers.intmc.write
    def unmask(self, value: int) -> None:
        """INTMC: unmask interrupts. INTMS and INTMC share one mask (§3.1.4)."""
        self.intms &= ~value
        self.controller.queues.interrupts.unmasked()

    @Registers.intmc.read
    def read_mask(self) -> int:
        """INTMC: a read gives the mask."""
        return self.intms

    @Registers.admin_bells.write
    def ring_admin(self, offset: int, size: int, value: int) -> None:
        """A ring of a doorbell of the admin queues."""
        self.ring(offset, size, value)

    @Registers.io_bells.write
    def ring_io(self, offset: int, size: int, value: int) -> None:
        """A ring of a doorbell of I/O queues, with its value."""
        self.ring(offset + 8, size, value)

    @Registers.io_bells.ring
    def ring_io_by_event(self, offset: int) -> None:
        """A ring of a doorbell of I/O queues by ioeventfd, without its value."""
        if offset & 4:
            self.controller.engine.ring_head(offset + 8 >> 3, None)
        else:
            self.controller.engine.ring_tail(offset + 8 >> 3, None)

    def ring(self, offset: int, size: int, value: int) -> None:
        """Even doorbells are tails, odd ones heads. Only a write of a whole doorbell rings (§3.1.24, §3.1.25)."""
        if size != 4 or offset % 4:
            return
        if offset & 4:
            self.controller.engine.ring_head(offset >> 3, value)
        else:
            self.controller.engine.ring_tail(offset >> 3, value)


def images(text: str) -> list[Path]:
    """The paths in ``text``, separated by commas. Two commas stand for one in a name, as in QEMU's options."""
    names = text.replace(",,", "\0").split(",")
    return [Path(name.replace("\0", ",")) for name in names if name]
