"""A replica: an engine and the server's application around it, called as a function instead of over HTTP.

    status, body = await Replica("smollm2-135m-instruct", {}).answer("/v1/completions", {"prompt": "Hi"})

So a line of a batch is checked, run and answered by the very code that answers a client of `serve`. On Ray
the same class is an actor (`ray_replicas.py`).
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.server.api import make_app
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.limits import Limits
from minivllm.server.service import Service
from minivllm.weights.generation_config import default_sampling_params


class Replica:
    """One engine.

    Args:
        model: see `EngineConfig`; also the name that requests call it by.
        options: the other settings of the engine.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.engine = AsyncLLM(lambda: LLMEngine(EngineConfig(model=model, **options)))
        defaults = default_sampling_params(self.engine.engine.model_folder)
        # How many requests are under way is for the caller to say: none is refused because others wait.
        service = Service(engine=self.engine, names=(model,), defaults=defaults, max_unfinished=10**9)
        transport = httpx.ASGITransport(make_app(service, Limits()))
        # No time limit: a request may wait for its turn as long as it takes.
        self._client = httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=None)

    async def answer(self, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """-> HTTP status and body."""
        response = await self._client.post(url, json=body)
        return response.status_code, json.loads(response.content)
