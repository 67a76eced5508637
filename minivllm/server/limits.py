"""What a client may do, and in what time: `Limits`, and the guard that holds every request to them::

    who        no API key, or a wrong one                        401
               a page of another host that calls ours            403     (a browser says so in `Origin`)
               a page whose host claims to be this machine       403     (`Host` has its name)
    how much   a body beyond `max_body_bytes`                    413
    how slow   headers that are not complete in time             closed  (`PatientProtocol`)
               a body that is not complete in time               408
               an answer that is not read                        closed, and its request aborted

Why `Origin`: the server listens on 127.0.0.1, where every page in the user's browser can reach it. Such a
page cannot read the answers, but without this check it could stop the engine or keep it busy.

Why `Host`: the owner of evil.example can let that name point to 127.0.0.1 once the page is loaded (DNS
rebinding). Then the page's calls reach us, and to the browser they are calls to its own host: `Origin` agrees
with `Host`. But both say evil.example, where a program of this machine would say localhost.

vLLM V1: `AuthenticationMiddleware` in `vllm/entrypoints/openai/server_utils.py`; the rest is left to a proxy.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from minivllm.server.errors import APIError, error_response

# Without a key: whether it lives, and a page that holds nothing but itself.
OPEN_PATHS = ("/", "/health")


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. Without `api_keys` all may come in.

    `is_loopback`: the server listens on this machine's own address only, so `Host` must be a name of it, or
    the host of an allowed origin (a proxy's).
    """

    api_keys: tuple[str, ...] = ()
    is_loopback: bool = False
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    write_seconds: float = 60.0


def guard(app: FastAPI, limits: Limits) -> None:
    """Put the guard, and CORS headers if other origins are allowed, in front of all routes."""
    app.add_middleware(Guard, limits=limits)
    if limits.allowed_origins:
        origins = list(limits.allowed_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


class Guard:
    """ASGI middleware: refuses what `limits` forbids, and puts a time limit on each read and write."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
        except APIError as error:
            await error_response(error)(scope, receive, send)
            return
        body = _Body(receive, self.limits)

        async def write(message: Message) -> None:
            async with asyncio.timeout(self.limits.write_seconds):
                await send(message)

        await self.app(scope, body.receive, write)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        origin, host = headers.get("origin"), headers.get("host", "localhost")
        allowed = self.limits.allowed_origins
        own = origin is None or _host_of(origin) == host
        if not own and origin not in allowed and "*" not in allowed:
            raise APIError(403, "requests from pages of other origins are not allowed here.")
        known = "*" in allowed or host in map(_host_of, allowed) or is_loopback(host)
        if self.limits.is_loopback and not known:
            raise APIError(403, f"the header Host must name this machine, as localhost does, got {host!r}.")
        if self.limits.api_keys and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            raise APIError(401, "a valid API key is needed: Authorization: Bearer KEY.")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Each key takes a time that does not tell how many of its characters were right.
        keys = [key.encode() for key in self.limits.api_keys]
        num_right = sum(hmac.compare_digest(given.strip().encode(), key) for key in keys)
        return scheme.lower() == "bearer" and num_right > 0


def is_loopback(host: str) -> bool:
    """Whether a host means the machine that asks, such as localhost, 127.0.0.1:8000 or [::1]."""
    name = re.sub(r"^\[(.*)\]$", r"\1", re.sub(r"(?<=[^:]):\d+$", "", host)).lower()
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _host_of(origin: str) -> str:
    """Example: "https://ui.example:81" gives "ui.example:81"."""
    return origin.partition("://")[2]


class _Body:
    """`receive` with limits on the body; what follows it, the client's leaving, may take for ever.

    One deadline holds for the whole body. A limit on each piece would not do: a client that sends a byte now
    and then would keep to it for ever.

    The errors are HTTPExceptions, because FastAPI, which reads the body, lets no others through.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds
        self._num_bytes = 0
        self._is_complete = False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        seconds, most = self._limits.body_seconds, self._limits.max_body_bytes
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {seconds} seconds.") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > most:
            raise HTTPException(413, f"the body has more than {most} bytes.")
        self._is_complete = not message.get("more_body", False)
        return message


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, with a limit on how long the headers of each request may take.

    uvicorn's own starts its keep-alive timer after an answer and stops it at the first byte, so a client that
    sends a header a minute could hold a connection for ever. The timer here is stopped by nothing but a
    request whose headers are complete::

        connection   GET / answered    "G"  "E"  "T" ...     (too slow)
        |--timer--x  |--timer-----------------------> closed
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first request's headers."""
        super().connection_made(transport)
        self._expect_headers()

    def on_response_complete(self) -> None:
        """Start the timer for the next request's headers, which may be here already (pipelining)."""
        self._expect_headers()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle, self.cycle)

    def _close_if_idle(self, last: RequestResponseCycle | None) -> None:
        """Close the connection, unless a request has begun after `last` (None: after none)."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()
