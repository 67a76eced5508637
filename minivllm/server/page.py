"""The page at `/`: a chat, and beside it the block pool as it fills. Pause, and step through `schedule()`.

    GET  /               one self-contained page: HTML, style, script (`page.html`, `page.css`, `page.js`)
    GET  /page/events    pictures of the pool (`events.py`), at most ten a second, as server-sent events
    POST /page/pause     /page/resume     /page/step

How pictures reach the page. One task asks the engine's thread for a picture, at most ten times per second
and only while a page is open; between two steps the thread makes it. Pictures take at most 1% of the thread's
time: after one that took 3 ms, the next comes 300 ms later. If it differs from the last one, each open page
gets it. A slow page misses pictures; they do not queue up, and two pages show the same::

    engine's thread    step   step  [picture]  step   step  [picture]  ...
    Feed                             frame 41                frame 42
    page A                           frame 41                frame 42
    page B (slow)                                            frame 42

vLLM V1 has no counterpart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from minivllm.engine import LLMEngine
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.errors import APIError, json_response
from minivllm.server.events import StepLog
from minivllm.server.service import event

FRAME_SECONDS = 0.1
SHARE = 0.01  # of the engine's time, for pictures


class Feed:
    """Pictures of the pool for all open pages.

    Args:
        engine: what is shown.
        log: told by the engine about each step.
        is_closing: asked now and then; once it says yes, all pages' streams end, so that the server can.
    """

    def __init__(
        self, engine: AsyncLLM, log: StepLog, is_closing: Callable[[], bool] = lambda: False
    ) -> None:
        self.engine, self.log, self.is_closing = engine, log, is_closing
        self._news: set[asyncio.Event] = set()  # one for each open page, set when there is a new frame
        self._frame: dict[str, Any] = {}
        self._seconds = 0.0  # that the last picture took
        self._task: asyncio.Task[None] | None = None

    async def frames(self) -> AsyncIterator[bytes]:
        """The present picture, and from then on each new one that the page is quick enough for."""
        news = asyncio.Event()
        self._news.add(news)
        if self._task is None:
            self.log.is_watched = True
            self._task = asyncio.create_task(self._poll())
        elif self._frame:
            news.set()
        try:
            while not self.is_closing() and self.engine.is_running:
                await news.wait()
                news.clear()
                yield event(self._frame)
        finally:
            self._news.discard(news)
            if not self._news and self._task is not None:
                self._task.cancel()
                self._task, self._frame, self.log.is_watched = None, {}, False

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        return max(FRAME_SECONDS, self._seconds / SHARE)

    async def look(self) -> None:
        """Take a picture now; if it is a new one, every page gets it."""
        frame = await self.engine.call(self._picture) | {"paused": await self.engine.is_paused()}
        if frame != {name: self._frame.get(name) for name in frame}:
            self._frame = frame | {"time": time.monotonic()}
            self._tell()

    async def _poll(self) -> None:
        while not self.is_closing() and self.engine.is_running:
            await self.look()
            await asyncio.sleep(self.pause)
        self._tell()  # they look whether it is over, and go

    def _picture(self, engine: LLMEngine) -> dict[str, Any]:
        """In the engine's thread."""
        start = time.perf_counter()
        frame = self.log.frame(engine)
        self._seconds = time.perf_counter() - start
        return frame

    def _tell(self) -> None:
        for news in self._news:
            news.set()


def page_html() -> str:
    """The page as one piece: nothing is loaded from anywhere else."""
    source = files("minivllm.server")
    html, style, script = (
        source.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    return html.replace("/* STYLE */", style).replace("/* SCRIPT */", script)


def page_routes(feed: Feed) -> APIRouter:
    """The page, its events, its buttons."""
    router, engine = APIRouter(include_in_schema=False), feed.engine

    @router.get("/")
    async def page() -> Response:
        return HTMLResponse(page_html(), headers={"Content-Security-Policy": POLICY})

    @router.get("/page/events")
    async def events() -> Response:
        return StreamingResponse(
            feed.frames(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @router.post("/page/pause")
    async def pause() -> Response:
        await engine.pause()
        return await shown()

    @router.post("/page/resume")
    async def resume() -> Response:
        await engine.resume()
        return await shown()

    @router.post("/page/step")
    async def step() -> Response:
        try:
            stepped = await engine.step()
        except ValueError as error:
            raise APIError(409, str(error)) from None
        return await shown(stepped=stepped)

    async def shown(**more: bool) -> Response:
        """The answer to a button; the pages show what it did without waiting for the next look."""
        await feed.look()
        return json_response({"paused": await engine.is_paused(), **more})

    return router


# Nothing from elsewhere, not even by mistake.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:"
)
