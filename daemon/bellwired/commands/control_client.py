"""The commands' end of the control socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from asyncvarlink import VarlinkClientProtocol, VarlinkErrorReply, connect_unix_varlink
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from bellwired.errors import CommandError
from bellwired.manager.control import Control, Failed
from bellwired.places import SYSTEM_RUNTIME, Places

Result = TypeVar("Result")
PATIENCE = 5.0  # seconds for a daemon that is well to say who it is
LONGEST = 300.0  # for what takes its time: starting a device, reading the configuration again
NOT_RUNNING = "systemctl start bellwired, or run bellwired yourself"
ELSEWHERE = f"the system's own daemon: --runtime-dir {SYSTEM_RUNTIME}"


def call(places: Places, work: Callable[[Any], Awaitable[Result]], timeout: float | None = LONGEST) -> Result:
    """Run ``work(daemon)``, where ``daemon`` has the methods of :class:`Control`. A CommandError says what failed."""

    async def talk() -> Result:
        transport, protocol = await _connect(places.control)
        try:
            async with asyncio.timeout(PATIENCE):
                await protocol.make_proxy(VarlinkServiceInterface).GetInfo()
            async with asyncio.timeout(timeout):
                return await work(protocol.make_proxy(Control))
        except TimeoutError:
            raise CommandError(f"{places.control}: the daemon does not answer", "its log may say why") from None
        except VarlinkErrorReply as error:
            raise _explain(error) from None
        except (EOFError, ConnectionError):
            raise CommandError("the daemon has hung up", "its log says why") from None
        finally:
            transport.close()
            await asyncio.sleep(0)

    return asyncio.run(talk())


def method(places: Places, method_name: str, /, **arguments: Any) -> dict[str, Any]:
    """One method's reply."""

    async def work(daemon: Any) -> dict[str, Any]:
        return dict(await getattr(daemon, method_name)(**arguments) or {})

    return call(places, work)


def stream(places: Places, name: str | None, each: Callable[[dict[str, Any]], None]) -> None:
    """Call ``each`` with every event, until the daemon ends or the user has enough."""

    async def work(daemon: Any) -> None:
        events: AsyncIterator[Any] = daemon.Monitor(name=name)
        async for reply in events:
            each(dict(reply["event"]))

    call(places, work, timeout=None)


async def _connect(path: Path) -> Any:
    try:
        return await connect_unix_varlink(VarlinkClientProtocol, path)
    except FileNotFoundError:
        hint = ELSEWHERE if path.parent != SYSTEM_RUNTIME and SYSTEM_RUNTIME.exists() else NOT_RUNNING
        raise CommandError(f"{path}: no daemon is running there", hint) from None
    except ConnectionRefusedError:
        raise CommandError(f"{path}: the daemon that made this socket is gone", NOT_RUNNING) from None
    except PermissionError:
        raise CommandError(f"{path}: you may not use it", "be root, or a member of the control-group") from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None


def _explain(error: VarlinkErrorReply) -> CommandError:
    if isinstance(error, Failed):
        return CommandError(error.parameters["message"], error.parameters["hint"])
    if error.name == "org.varlink.service.PermissionDenied":
        return CommandError("the daemon does not let you do that", "be root, or the user that the daemon runs as")
    return CommandError(f"the daemon answers {error}")
