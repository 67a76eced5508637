"""The routes: OpenAI's and vLLM's. `make_app` puts the server together.

One request, from the socket to the engine and back::

    POST /v1/completions     limits.py      API key, origin, time for the body
                             protocol.py    fields -> SamplingParams, or 400
    submit                   async_llm.py   checked and queued in the engine's thread, or 400
    200, chunks              responses.py   one event per output; a comment when there is none for long
    client leaves            service.py     the stream is closed: the request is aborted, its blocks are free

What needs the tokenizer (a chat template, the text of token ids) is done in the engine's thread, in functions
that are handed over: `AsyncLLM.call`.

vLLM V1: `vllm/entrypoints/openai/api_server.py`.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, FastAPI, Request, Response

import minivllm
from minivllm.engine import LLMEngine
from minivllm.inputs import Request as EngineRequest
from minivllm.prompts import Prompt, encode, render_chat
from minivllm.sampling_params import SamplingParams
from minivllm.server.errors import install_handlers, json_response
from minivllm.server.limits import Limits, guard
from minivllm.server.protocol import (
    ChatRequest,
    CompletionRequest,
    Conversation,
    DetokenizeRequest,
    TokenizeRequest,
)
from minivllm.server.responses import ChatReply, CompletionReply
from minivllm.server.service import Service


def make_app(service: Service, limits: Limits, *routers: APIRouter) -> FastAPI:
    """The server as an ASGI application.

    Args:
        service: what the routes share.
        limits: what a client may do, and in what time.
        routers: more routes: those of the page and of the metrics.
    """
    # No pages of FastAPI's own: they load scripts from another host.
    app = FastAPI(title="minivllm", version=minivllm.__version__, docs_url=None, redoc_url=None)
    install_handlers(app)
    for router in (generating_routes(service), asking_routes(service), *routers):
        app.include_router(router)
    guard(app, limits)
    return app


def generating_routes(service: Service) -> APIRouter:
    """The two routes that generate."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: CompletionRequest, raw: Request) -> Response:
        request.check()
        service.check_model(request.model)
        service.check_output_limit(request)
        no_output = bool(request.echo) and request.max_tokens == 0
        if no_output:  # the engine makes at least one token
            request.max_tokens = 1
        scored = request.logprobs if request.echo else None
        params = request.sampling_params(service.defaults, logprobs=request.logprobs, prompt_logprobs=scored)
        names = (service.names[0], params.n, service.token_names)
        reply = CompletionReply(*names, bool(request.echo), no_output)
        makers = []
        for number, prompt in enumerate(request.prompts()):
            if isinstance(prompt, str):
                service.check_length(prompt, "prompt")
            words = (reply.first_words, f"{reply.id}-{number}")
            makers.append(partial(_completion_request, request, prompt, params, *words))
        return await service.answer(request, raw, reply, await service.submit(reply, makers, params))

    @router.post("/v1/chat/completions")
    async def chat(request: ChatRequest, raw: Request) -> Response:
        request.check()
        service.check_model(request.model)
        service.check_length(str(request.messages), "messages")
        service.check_output_limit(request)
        num_top = request.top_logprobs or 0
        # Unless it is told otherwise, a chat runs on to the end of its turn.
        params = request.sampling_params(
            service.defaults, max_tokens=None, logprobs=num_top if request.logprobs else None
        )
        reply = ChatReply(service.names[0], params.n, service.token_names, num_top)
        makers = [partial(_chat_request, request, params)]
        return await service.answer(request, raw, reply, await service.submit(reply, makers, params))

    return router


def asking_routes(service: Service) -> APIRouter:
    """The routes that only ask."""
    router, engine = APIRouter(), service.engine

    @router.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> Response:
        request.check()
        service.check_model(request.model)
        service.check_length(request.prompt or str(request.messages), "prompt")
        tokens = await service.ask(partial(_tokens_of, request))
        length = engine.engine.max_model_len
        return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": length})

    @router.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> Response:
        request.check()
        service.check_model(request.model)
        return json_response({"prompt": await service.ask(partial(_text_of, request.tokens))})

    @router.get("/v1/models")
    async def models() -> Response:
        shown = {"object": "model", "created": 0, "owned_by": "minivllm", "root": service.names[0]}
        length = {"max_model_len": engine.engine.max_model_len}
        return json_response(
            {"object": "list", "data": [{"id": name} | shown | length for name in service.names]}
        )

    @router.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if engine.is_running else 503)

    @router.get("/version")
    async def version() -> Response:
        return json_response({"version": minivllm.__version__})

    return router


# -- in the engine's thread -------------------------------------------------------------------------


def _completion_request(
    request: CompletionRequest,
    prompt: Prompt,
    params: SamplingParams,
    first_words: dict[str, tuple[int, str]],
    request_id: str,
    engine: LLMEngine,
) -> EngineRequest:
    """One prompt of a completion. With echo the text of token ids is needed, too."""
    tokenizer = engine.tokenizer
    text, token_ids = prompt, prompt
    if isinstance(prompt, str):
        # Tokenized here, once, and not by the engine: whether special tokens are added is a choice.
        token_ids = encode(tokenizer, prompt, request.add_special_tokens is not False)
    elif request.echo:
        _check_tokens(prompt, engine)
        text = tokenizer.decode(prompt)
    if request.echo and token_ids:
        first_words[request_id] = (token_ids[0], tokenizer.decode(token_ids[:1]))
    whole = {"prompt_token_ids": token_ids} | ({"prompt": text} if isinstance(text, str) else {})
    return EngineRequest(whole, params, priority=request.priority or 0)


def _chat_request(request: ChatRequest, params: SamplingParams, engine: LLMEngine) -> EngineRequest:
    return EngineRequest(_rendered(request, engine), params, priority=request.priority or 0)


def _tokens_of(request: TokenizeRequest, engine: LLMEngine) -> list[int]:
    if request.messages is not None:
        return _rendered(request, engine)["prompt_token_ids"]
    return encode(engine.tokenizer, request.prompt, request.add_special_tokens is not False)


def _rendered(request: Conversation, engine: LLMEngine) -> Prompt:
    """A conversation, through the model's own template."""
    return render_chat(
        engine.tokenizer,
        request.messages,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
    )


def _text_of(tokens: list[int], engine: LLMEngine) -> str:
    _check_tokens(tokens, engine)
    return engine.tokenizer.decode(tokens)


def _check_tokens(tokens: list[int], engine: LLMEngine) -> None:
    """Raise ValueError for ids that no token has: the tokenizer's own error for them names nothing."""
    size = engine.model_config.vocab_size
    if outside := [token for token in tokens if not 0 <= token < size]:
        raise ValueError(f"tokens must be token ids from 0 to {size - 1}, got {outside[0]}.")
