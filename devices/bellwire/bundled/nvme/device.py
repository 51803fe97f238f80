"""nvme: a disk as the NVM Express Base Specification 1.4 has it."""

from __future__ import annotations

import ctypes
import uuid
from pathlib import Path

from bellwire import Option, OptionError, Saved, SavedBytes
from bellwire.bundled.nvme.controller import Controller, Manner, StateViews
from bellwire.bundled.nvme.events import EventState
from bellwire.bundled.nvme.features import WORDS
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.inventory import take_stock
from bellwire.bundled.nvme.journal import JOURNAL_SIZE
from bellwire.bundled.nvme.logs import ERRORS_SIZE, Counters
from bellwire.bundled.nvme.namespaces import MOST_IDS, Namespaces
from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue
from bellwire.bundled.nvme.registers import QUEUES, Registers
from bellwire.bundled.nvme.shadow import ShadowState
from bellwire.bundled.nvme.store import Store
from bellwire.bundled.nvme.timestamp import TimestampState
from bellwire.storage import LARGEST, Disk, StorageError, check_blocks
from bellwire.storage.aio import direct_pool

BLOCK_SIZES = (512, 4096)
DEFAULT_SIZE = 64 << 20


def serial_number(text: str) -> str | None:
    """What Identify Controller has room for (§5.15.2.2)."""
    return (
        None if len(text) <= 20 and text.isascii() and text.isprintable() else "at most 20 printable ASCII characters"
    )


class Nvme(Registers, vendor=0x1234, device=0xBE5D, class_code=0x010802):
    """An NVMe controller: namespaces on raw images, block devices or memory.

    A guest's doorbell write must arrive with its value, or the device cannot know how far a queue reaches; so
    doorbells travel by ioregionfd or by message. A guest that has set up shadow doorbells keeps the values in its
    memory, and then an ioeventfd is enough. But a client asks for file descriptors once, when it plugs the device in,
    long before the guest's driver runs. ``doorbells=shadow`` therefore promises for the guest that it will use them:
    I/O doorbells are handed over as ioeventfds from the start. Linux keeps the promise, since it sets shadow
    doorbells up before its first I/O; firmware does not, and a ring without them is dropped and logged. A client
    that takes no ioeventfds, as QEMU, sends values by message all the same, and serves every guest.
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

    before = Saved(0)  # CC as it was last written
    submission_state = SavedBytes((QUEUES + 1) * ctypes.sizeof(SubmissionQueue))
    completion_state = SavedBytes((QUEUES + 1) * ctypes.sizeof(CompletionQueue))
    feature_state = SavedBytes(4 * WORDS)
    counter_state = SavedBytes(ctypes.sizeof(Counters))
    error_state = SavedBytes(ERRORS_SIZE)
    event_state = SavedBytes(ctypes.sizeof(EventState))
    shadow_state = SavedBytes(ctypes.sizeof(ShadowState))
    journal_state = SavedBytes(JOURNAL_SIZE)
    timestamp_state = SavedBytes(ctypes.sizeof(TimestampState))

    def setup(self) -> None:
        """Open the images, and put the controller together."""
        identity = ControllerIdentity(0x1234, 0x1234, self.serial or self.made_up_serial())
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
        )
        store = Store(self.store if self.store.name else None)
        try:
            namespaces = self.take_stock(store, identity)
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

    def take_stock(self, store: Store, identity: ControllerIdentity) -> Namespaces:
        """The namespaces that options name, and those that the store knows."""
        disks = self.open_disks()
        try:
            return take_stock(store, disks, self.block_size, identity.uuid, spare=self.capacity, direct=self.direct)
        except BaseException:
            for disk in disks:
                disk.close()
            raise

    def check_options(self) -> None:
        """Refuse what no controller could be."""
        check_blocks(self.size, self.block_size)
        given = len(images(self.image))
        if self.namespaces and given > self.namespaces:
            raise OptionError(f"option image: {given} images for namespaces={self.namespaces}")
        if given > MOST_IDS:
            raise OptionError(f"option image: {given} images, at most {MOST_IDS}")

    def open_disks(self) -> list[Disk]:
        """A disk for each namespace; all or none."""
        paths = images(self.image)
        count = self.namespaces or len(paths) or 1
        disks: list[Disk] = []
        try:
            for path in paths:
                disks.append(self.open_disk(path))
                if disks[-1].size < self.block_size:
                    raise StorageError(f"image {path}: {disks[-1].size} bytes, too few for a block; give size=")
            while len(disks) < count:
                disk = Disk.memory(self.size or DEFAULT_SIZE)
                disk.readonly = self.readonly
                disks.append(disk)
        except BaseException:
            for disk in disks:
                disk.close()
            raise
        return disks

    def open_disk(self, path: Path) -> Disk:
        """One image, as the options have it."""
        return Disk.open(path, readonly=self.readonly, size=self.size, direct=self.direct, block=self.block_size)

    def made_up_serial(self) -> str:
        """The same for the same images; for memory another one each time, since two of a kind confuse a guest."""
        name = uuid.uuid5(uuid.NAMESPACE_URL, str(Path(self.image).absolute())) if self.image else uuid.uuid4()
        return f"BW{name.hex[:16].upper()}"

    def reset(self) -> None:
        """Wait for the threads, which may be writing guest memory, and begin anew."""
        self.controller.engine.pool.settle()
        self.controller.power_on()

    def restored(self) -> None:
        """Do again what was under way."""
        self.controller.engine.pool.settle()
        self.controller.restored()

    def close(self) -> None:
        """End the threads, put what is to outlive us into the store, and close the images."""
        self.controller.engine.pool.close()
        self.controller.close()

    @size.set
    def resize(self, size: int = 0) -> None:
        """Give the namespaces another size while the guest runs; 0: that which somebody else has given the images."""
        self.controller.resize(size, shrink=self.shrink)
        if self.shrink:
            self.change("shrink", False)  # it was for this once

    @shrink.set
    def allow_shrinking(self, shrink: bool) -> None:
        """Nothing happens before the next size."""

    @Registers.cc.write
    def configure(self, _: int) -> None:
        """The host starts, stops or shuts down the controller."""
        before, self.before = self.before, self.cc
        self.controller.configure(before, self.cc)

    @Registers.intms.write
    def mask(self, _: int) -> None:
        """Interrupts that are masked, for MSI and the line (§3.1.3)."""
        self.controller.queues.interrupts.level()

    @Registers.intmc.write
    def unmask(self, value: int) -> None:
        """Both registers are one mask (§3.1.4)."""
        self.intms &= ~value
        self.controller.queues.interrupts.unmasked()

    @Registers.intmc.read
    def read_mask(self) -> int:
        """Reads give the mask."""
        return self.intms

    @Registers.admin_bells.write
    def ring_admin(self, offset: int, size: int, value: int) -> None:
        """The admin queues' doorbells."""
        self.ring(offset, size, value)

    @Registers.io_bells.write
    def ring_io(self, offset: int, size: int, value: int) -> None:
        """The I/O queues' doorbells, by value."""
        self.ring(offset + 8, size, value)

    @Registers.io_bells.ring
    def ring_io_by_event(self, offset: int) -> None:
        """The I/O queues' doorbells, when nobody can tell the value."""
        self.ring(offset + 8, 4, None)

    def ring(self, offset: int, size: int, value: int | None) -> None:
        """Even doorbells are tails, odd ones heads; only whole ones ring (§3.1.24, §3.1.25)."""
        if size != 4 or offset % 4:
            return
        if offset & 4:
            self.controller.engine.ring_head(offset >> 3, value)
        else:
            self.controller.engine.ring_tail(offset >> 3, value)


def images(text: str) -> list[Path]:
    """The paths that ``text`` names, separated by commas; two in a row are one in a name, as in QEMU's options."""
    names = text.replace(",,", "\0").split(",")
    return [Path(name.replace("\0", ",")) for name in names if name]
