"""nvme's namespaces against a model: whatever the host does with them, they are the same after a new start."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.namespace import FORMATS
from bellwire.bundled.nvme.status import Status
from nvme.driver import PAGE, transfer
from nvme.test_nvme_namespaces import attach, create, delete, listed
from nvme.test_nvme_store import MIB, started

pytestmark = pytest.mark.slow  # every step waits for the medium

CAPACITY = 4 * MIB


@dataclass
class Space:
    """What is known of a namespace; ``mark`` is the first byte of it."""

    size: int
    form: int = 0
    attached: bool = True
    mark: int = 0
    made: bool = True


class NamespaceModel(RuleBasedStateMachine):
    """Namespaces are made, deleted, attached, detached, formatted, sanitized and written to, over new starts."""

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.running = contextlib.ExitStack(), contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))

    @initialize()
    def begin(self) -> None:
        self.spaces = {1: Space(MIB, mark=ord("1"), made=False)}
        self.spare = CAPACITY
        self.start()

    def start(self) -> None:
        self.driver = self.running.enter_context(started(self.folder, capacity=CAPACITY))
        self.queues = self.driver.create_queues()
        self.page = self.driver.allocate(PAGE)

    @rule(blocks=st.integers(1, 4096), form=st.integers(0, 1))
    def create(self, blocks: int, form: int) -> None:
        size = blocks << FORMATS[form]
        done = create(self.driver, blocks, form=form)
        if size > self.spare:
            assert done.code == Status.NAMESPACE_INSUFFICIENT_CAPACITY
            return
        assert done.status == 0
        assert done.result == min(set(range(1, 33)) - set(self.spaces))
        self.spaces[done.result] = Space(size, form, attached=False)
        self.spare -= size

    @rule(nsid=st.integers(1, 5))
    def delete(self, nsid: int) -> None:
        done = delete(self.driver, nsid)
        if nsid in self.spaces:
            assert done.status == 0
            self.spare += self.spaces.pop(nsid).size
        else:
            assert done.code == Status.INVALID_FIELD

    @rule(nsid=st.integers(1, 5), detach=st.booleans())
    def attach(self, nsid: int, detach: bool) -> None:
        done = attach(self.driver, nsid, detach=detach)
        space = self.spaces.get(nsid)
        assert (done.status == 0) == (space is not None and space.attached == detach)
        if space is not None:
            space.attached = not detach

    @rule(nsid=st.integers(1, 5), form=st.integers(0, 1))
    def format(self, nsid: int, form: int) -> None:
        done = self.driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=nsid, dwords=(form,))
        space = self.spaces.get(nsid)
        if space is None or not space.attached:
            assert done.code == Status.INVALID_FIELD
        elif space.size < 1 << FORMATS[form]:
            assert done.code == Status.INVALID_FORMAT
        else:
            assert done.status == 0
            space.form, space.mark = form, 0

    @rule(nsid=st.integers(1, 5), mark=st.integers(0, 255))
    def write(self, nsid: int, mark: int) -> None:
        self.driver.memory[self.page] = mark
        space = self.spaces.get(nsid)
        shift = FORMATS[space.form] if space else 9
        done = transfer(self.queues, IoOpcode.WRITE, self.page, 0, 1, nsid=nsid, shift=shift)
        if space is None or not space.attached:
            assert done.code == Status.INVALID_FIELD
        else:
            assert done.status == 0
            space.mark = mark

    @rule()
    def sanitize(self) -> None:
        assert self.driver.admin.do(AdminOpcode.SANITIZE, dwords=(2,)).status == 0
        while self.driver.log(0x81)[2] == 2:
            self.driver.machine.step()
        for space in self.spaces.values():
            space.mark = 0

    @rule()
    def end_and_start(self) -> None:
        self.running.close()
        self.start()

    @invariant()
    def the_host_sees_what_there_is(self) -> None:
        if self.driver.next_page > len(self.driver.memory) - 64 * PAGE:
            self.end_and_start()
        assert listed(self.driver, 0x10) == sorted(self.spaces)
        assert listed(self.driver, 0x02) == sorted(nsid for nsid, space in self.spaces.items() if space.attached)
        assert int.from_bytes(self.driver.identify(0x01)[296:312], "little") == self.spare
        for nsid, space in self.spaces.items():
            page = self.driver.identify(0x11, nsid)
            shift = FORMATS[space.form]
            assert (int.from_bytes(page[:8], "little"), page[26]) == (space.size >> shift, space.form)
            if space.attached:
                done = transfer(self.queues, IoOpcode.READ, self.page, 0, 1, nsid=nsid, shift=shift)
                assert (done.status, self.driver.memory[self.page]) == (0, space.mark)

    def teardown(self) -> None:
        self.running.close()
        self.stack.close()


TestNamespaceModel = NamespaceModel.TestCase
TestNamespaceModel.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
