"""The filters of a device under the manager: those of its file, and what was added and removed since."""

from __future__ import annotations

import contextlib
from typing import Any

from bellwired.errors import CommandError
from bellwired.manager.asked import Asked
from bellwired.settings import Device, Filters
from bellwired.workers.event_rings import EventRings


class Filtered(Asked):
    """Remembers the filters that a running device has, so that its next worker has them too."""

    _switched: tuple[Filters, Filters] | None = None
    """The filters of its file, and those that it has had since somebody added or removed one."""
    settings: Device

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rings = EventRings()

    def filters(self, settings: Device) -> Filters:
        """The filters for its next worker: those that it has, unless its file has others since they were changed."""
        if self._switched is not None and self._switched[0] == settings.filters:
            return self._switched[1]
        return settings.filters

    async def filter(self, action: str, named: str = "", place: str = "") -> list[dict[str, Any]]:
        """Add, remove or list filters: see :class:`bellwired.filtering.Switches`. Returns those that it has then."""
        found = list(await self.ask("filter", action=action, named=named, place=place))
        if action != "list":
            asked = [{"name": each["name"], **each["given"]} for each in found if each["asked"]]
            self._switched = self.settings.filters, asked
            await self.keep_ring()
        return found

    async def keep_ring(self) -> None:
        """Keep the event ring of the filter ``trace``, if the device has one: it outlives the worker."""
        if any(each["name"] == "trace" for each in self.filters(self.settings)):
            with contextlib.suppress(CommandError):  # the worker has just ended
                self._has_ring((await self.worker.borrow("events"))[1])

    def _has_ring(self, ring: int) -> None:
        """Its worker has this event ring; the descriptor is ours now."""
        self.rings.keep(ring)
