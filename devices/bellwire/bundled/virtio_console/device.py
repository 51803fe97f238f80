"""virtio-console: consoles and named ports (virtio 1.2 §5.3), each on a stream."""

from __future__ import annotations

from collections import deque

from bellwire import Option, Saved, SavedBytes, StateError
from bellwire.bundled.virtio_console.control import CONTROL, LARGEST_NAME, Console, Event, queue_role
from bellwire.stream import BACKENDS, Stream, open_stream, stream_fault
from bellwire.virtio import Chain, VirtioDevice, Virtqueue, field
from bellwire.virtio.chain import part

MOST_PORTS = 16
MOST_MESSAGES = 4 * MOST_PORTS
"""The limit of messages that wait for buffers, since a driver may offer none. More are of no use."""
MESSAGE = 1 + CONTROL.size + LARGEST_NAME
"""Bytes of a message in a snapshot, behind one that says how long it is: 0 behind the last message."""


class Port:
    """A port at run time: its stream, and a buffer of the guest that is sent in part."""

    def __init__(self, number: int, name: str, stream: Stream) -> None:
        self.number = number
        self.name = name
        self.stream = stream
        self.held: Chain | None = None
        self.announced: bool
        """Whether the guest has been told that the stream has a peer."""
        self.watched = False


def named(text: str) -> list[tuple[str, str]]:
    """Split ``NAME=STREAM,...`` into pairs of name and stream."""
    return [word.partition("=")[::2] for word in text.split(",") if word]


def ports_fault(text: str) -> str | None:
    """What was expected, if ``text`` does not describe ports; else None."""
    found = named(text)
    names = [name for name, _ in found]
    if not 1 <= len(found) <= MOST_PORTS or len(set(names)) < len(names):
        return f"1 to {MOST_PORTS} different names"
    if any(not 1 <= len(name.encode(errors="surrogateescape")) <= LARGEST_NAME for name in names):
        return f"names of 1 to {LARGEST_NAME} bytes"
    return next((fault for _, stream in found if (fault := stream_fault(stream))), None)


class VirtioConsole(
    VirtioDevice, kind=3, queues=2 * MOST_PORTS + 2, queue_size=128, class_code=0x078000, name="virtio-console"
):
    """A console (port 0), and named ports, which Linux shows as /dev/virtio-ports/NAME."""

    ports = Option(
        "console=pty", check=ports_fault, help=f"1 to 16 ports NAME=STREAM, separated by commas; a stream is {BACKENDS}"
    )

    max_nr_ports = field(0x04)
    emerg_wr = field(0x08, access="wo")

    opened = Saved(0)
    """The ports that the guest has opened, as bits."""
    ready = Saved(False)
    """Whether the driver takes control messages."""
    waiting = SavedBytes(MOST_MESSAGES * MESSAGE)
    """The messages that wait for buffers."""
    sent_bytes = SavedBytes(4 * MOST_PORTS)

    def setup(self) -> None:
        """Open the stream of each port."""
        self.lines: list[Port] = []
        self.sent = self.sent_bytes.cast("I")
        """For each port, how much of the buffer is sent that the device has, or takes next."""
        self.messages: deque[bytes] = deque(maxlen=MOST_MESSAGES)
        try:
            for number, (name, stream) in enumerate(self.named()):
                self.lines.append(Port(number, name, open_stream(stream)))
        except BaseException:
            self.close()
            raise

    def named(self) -> list[tuple[str, str]]:
        """The names and streams of the ports, from the option."""
        return named(self.ports)

    def close(self) -> None:
        """Close the streams."""
        for port in self.lines:
            self.watch_port(port, False)
            port.stream.close()
        super().close()

    @property
    def queue_count(self) -> int:
        """Two queues for each port, and two control queues."""
        return 2 + 2 * len([word for word in self.ports.split(",") if word])

    def features(self) -> set[int]:
        """All features except the size of the screen, which streams do not give."""
        return {Console.MULTIPORT, Console.EMERG_WRITE}

    @max_nr_ports.read
    def read_ports(self) -> int:
        """The number of ports."""
        return len(self.lines)

    @emerg_wr.write
    def write_emergency(self, value: int) -> None:
        """Send a character on port 0, in any state of the driver (§5.3.4)."""
        self.lines[0].stream.send([bytes([value & 0xFF])])

    # -- the life of the driver

    def started(self) -> None:
        """Without MULTIPORT, there is only port 0, and it is open.

        The driver of a snapshot may know other peers than there are now, so it is told of all of them.
        """
        if Console.MULTIPORT not in self.negotiated:
            self.opened = 1
        for port in self.lines:
            self.watch_port(port, True)
            port.announced = self.ready and not port.stream.connected

    def saving(self) -> None:
        """Messages that wait go along."""
        rows = [(bytes([len(each)]) + each).ljust(MESSAGE, b"\0") for each in self.messages]
        self.waiting[:] = b"".join(rows).ljust(len(self.waiting), b"\0")

    def check_state(self) -> None:
        """Refuse a snapshot with messages of a length that none has."""
        super().check_state()
        for length in self.waiting[::MESSAGE]:
            if length and not CONTROL.size <= length < MESSAGE:
                raise StateError(f"the snapshot has a control message of {length} bytes")

    def restored(self) -> None:
        """Go on with the messages that wait."""
        super().restored()
        rows = (self.waiting[at : at + MESSAGE] for at in range(0, len(self.waiting), MESSAGE))
        self.messages.extend(bytes(row[1 : 1 + row[0]]) for row in rows if row[0])

    def recovered(self, torn: bool) -> None:
        """Go on after a process has died. Messages that waited in it are lost, so all ports are told of again.

        A driver ignores what it knows already. Bytes of which it is not known that they were sent are sent again.
        """
        self.waiting[:] = bytes(len(self.waiting))  # they are of an earlier snapshot
        super().recovered(torn)
        if self.running and self.ready:
            for port in self.lines:
                self.say(port, Event.PORT_ADD)
                self.introduce(port)

    def stopped(self) -> None:
        """Forget buffers and messages, and watch no stream."""
        self.messages.clear()
        for port in self.lines:
            self.watch_port(port, False)
            port.held = None

    def notified(self, queue: Virtqueue) -> None:
        """Send bytes, fill buffers, or handle control messages."""
        number, output = queue_role(queue.index)
        if number is None:
            if output:
                self.listen_to(queue)
            else:
                self.deliver(queue)
        else:
            port = self.lines[number]
            if output:
                self.send(port)
            else:
                self.watch_port(port, True)
                self.receive(port)

    # -- bytes

    def moved(self, port: Port) -> None:
        """The stream of ``port`` is ready."""
        port.stream.look()
        if not (self.running and self.connected):
            self.watch_port(port, False)
            return
        self.send(port)
        self.receive(port)

    def send(self, port: Port) -> None:
        """Send bytes of the guest, as many as the stream takes (§5.3.6)."""
        queue = self.virtqueues[self.queue_of(port) + 1]
        if port.held is not None and not self.push(port, port.held):
            return
        for chain in queue:
            if not self.push(port, chain):
                break  # the rest stays in the queue, and the guest notices

    def push(self, port: Port, chain: Chain) -> bool:
        """Send one buffer. False if a part of it has to wait."""
        sent = min(self.sent[port.number], chain.size)
        sent += port.stream.send(part(chain.readable, sent, chain.size))
        port.held = chain if sent < chain.size else None
        self.sent[port.number] = 0 if port.held is None else sent
        if port.held is None:
            chain.done()
        return port.held is None

    def receive(self, port: Port) -> None:
        """Copy received bytes to the guest's buffers, if it has opened the port. Bytes wait until there is a buffer."""
        queue = self.virtqueues[self.queue_of(port)]
        while wanted := self.is_open(port):
            taken = queue.take()
            if not taken:
                if queue.listen():
                    continue
                wanted = False
                break
            (chain,) = taken
            if not chain.room:
                chain.done()
                continue
            data = port.stream.receive(chain.room)
            if not data:
                queue.back(taken)
                break
            chain.write(data)
            chain.done()
        port.stream.hold(not wanted)
        queue.flush()
        self.announce(port)

    def is_open(self, port: Port) -> bool:
        """Whether the guest has opened ``port``."""
        return bool(self.opened >> port.number & 1)

    def queue_of(self, port: Port) -> int:
        """The number of the receive queue of ``port``. The transmit queue follows it (§5.3.2)."""
        return 2 * port.number + 2 if port.number else 0

    def watch_port(self, port: Port, wanted: bool) -> None:
        """Watch the stream of ``port``, or stop watching it."""
        if wanted and self.running and not port.watched:
            self.watch(port.stream.fileno(), lambda: self.moved(port))
        elif not wanted and port.watched:
            self.unwatch(port.stream.fileno())
        port.watched = wanted and self.running

    # -- control messages (§5.3.6.2)

    def listen_to(self, queue: Virtqueue) -> None:
        """Handle the control messages of the driver."""
        for chain in queue:
            data = chain.read()
            chain.done()
            if len(data) >= CONTROL.size:
                self.obey(*CONTROL.unpack_from(data))

    def obey(self, number: int, event: int, value: int) -> None:
        """Handle one control message. A message about an unknown port is ignored."""
        if event == Event.DEVICE_READY and value:
            self.ready = True
            for port in self.lines:
                self.say(port, Event.PORT_ADD)
        elif number < len(self.lines):
            port = self.lines[number]
            if event == Event.PORT_READY and value:
                self.introduce(port)
                port.announced = False
                self.announce(port)
            elif event == Event.PORT_OPEN:
                self.opened = self.opened & ~(1 << number) | bool(value) << number
                self.watch_port(port, True)
                self.receive(port)

    def introduce(self, port: Port) -> None:
        """Tell the guest whether a port is a console, and its name."""
        if port.number == 0:
            self.say(port, Event.CONSOLE_PORT, 1)
        self.say(port, Event.PORT_NAME, 1, port.name.encode())

    def announce(self, port: Port) -> None:
        """Tell the guest if the stream's peer has come or gone."""
        if self.ready and port.announced is not port.stream.connected:
            port.announced = port.stream.connected
            self.say(port, Event.PORT_OPEN, int(port.announced))

    def say(self, port: Port, event: Event, value: int = 0, more: bytes = b"") -> None:
        """Send a control message to the guest, as soon as it offers a buffer."""
        self.messages.append(CONTROL.pack(port.number, event, value) + more)
        self.deliver(self.virtqueues[2])

    def deliver(self, queue: Virtqueue) -> None:
        """Copy waiting control messages to the guest's buffers."""
        while self.messages:
            taken = queue.take()
            if not taken:
                if queue.listen():
                    continue
                break
            (chain,) = taken
            chain.write(self.messages.popleft()[: chain.room])
            chain.done()
        queue.flush()
