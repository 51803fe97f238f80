"""The view in a browser: each page runs a view of its own, served on the loopback address by textual-serve.

Any program or user of this machine reaches a loopback port, and so does any page that a browser shows. Hence the secret
token: the first request must have it, and gets it as a cookie, which pages of other sites are not sent with. The Host
header is checked, so a name that an attacker points at this address is no way in either.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from shlex import join

from aiohttp import web
from textual_serve.server import Server

from bellwired.errors import CommandError

HOST = "127.0.0.1"
COOKIE = "bellwire-view"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
"""The page may load nothing from elsewhere, and may be part of no other page."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guarded(Server):
    """textual-serve behind a token."""

    def __init__(self, command: str, port: int) -> None:
        super().__init__(command, HOST, port, title="Bellwire")
        self._token = secrets.token_urlsafe(32)
        self.address = f"{self.public_url}/?token={self._token}"
        """What the user opens."""

    async def on_startup(self, app: web.Application) -> None:
        """Print the address."""
        print(f"open {self.address}", flush=True)

    async def application(self) -> web.Application:
        """The application, with the guard before it."""
        app = await self._make_app()

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._guard(request, handler)

        app.middlewares.append(guard)
        return app

    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Host") != f"{HOST}:{self.port}":
            raise web.HTTPForbidden(text=f"this is http://{HOST}:{self.port}, and nothing else\n")
        if request.headers.get("Origin", self.public_url) != self.public_url:
            raise web.HTTPForbidden(text="a page of another site may not ask\n")
        if secrets.compare_digest(request.query.get("token", "").encode(), self._token.encode()):
            answer: web.StreamResponse = web.HTTPFound("/")
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict")
            return answer
        if not secrets.compare_digest(request.cookies.get(COOKIE, "").encode(), self._token.encode()):
            raise web.HTTPForbidden(text="the token is missing: open the address that bellwire view has printed\n")
        answer = await handler(request)
        if not answer.prepared:
            answer.headers["Content-Security-Policy"] = POLICY
            answer.headers["Referrer-Policy"] = "no-referrer"
        return answer


def serve(words: Sequence[str], port: int) -> int:
    """Serve views until Ctrl-C; each runs the command ``words``. A CommandError if the port cannot be had."""
    try:
        listener = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise CommandError(f"port {port} of {HOST}: {error}", "--port takes another one, 0 any") from None
    server = Guarded(f"exec {join(words)}", listener.getsockname()[1])
    web.run_app(server.application(), sock=listener, print=lambda *_: None, access_log=None)  # it would have the token
    return 0
