"""What a client may send: OpenAI's fields, vLLM's additions, and a clear no to the rest.

    {"model": "m", "prompt": "Hi", "max_tokens": 5, "top_k": 3, "user": "u", "tools": [...]}
                                   \\__ sampling parameters __/   \\ harmless   \\ 400: tools is not supported

A field that would change the answer and that we do not have must not be dropped in silence: a client which
asks for JSON and gets prose finds out too late. So each unknown field is an error that names it, unless it
says nothing (null, an empty list), says what is so anyway (`NEUTRAL`), or concerns no output (`HARMLESS`).

Types are strict: "5" is no number and true is no 1. Ranges are not looked at here; `SamplingParams` checks
them, with the same texts as in Python.

vLLM V1: `vllm/entrypoints/openai/completion/protocol.py`, `chat_completion/protocol.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from minivllm.prompts import Prompt
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.server.errors import APIError, wrong_request

# They concern accounting, storage or caching, and no output.
HARMLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls", "request_id",
}  # fmt: skip
# Values of fields we lack which ask for what happens anyway.
NEUTRAL: dict[str, Any] = {
    "best_of": 1, "suffix": "", "tool_choice": "none", "function_call": "none", "use_beam_search": False,
    "response_format": {"type": "text"}, "modalities": ["text"], "truncate_prompt_tokens": None,
    "length_penalty": 1.0, "echo": False, "include_reasoning": True, "return_token_strs": False,
}  # fmt: skip
NOTHING = (None, [], {})


def _one_of(expected: str) -> WrapValidator:
    """For a field of several types: one error that says what is `expected`, not one for each type."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError(
                "one_of", "Input should be {expected}", {"expected": expected}
            ) from None

    return WrapValidator(validate)


class _Strict(BaseModel):
    """Strict types; fields that are not declared are kept, for `reject_unknown` to judge."""

    model_config = ConfigDict(strict=True, extra="allow")

    def check(self) -> None:
        """Raise APIError 400 for what no type can tell; every route calls it first."""
        self.reject_unknown()

    def reject_unknown(self, where: str = "") -> None:
        """Raise APIError 400 for a field that would have to change the answer, and cannot.

        Args:
            where: what stands before the field's name, such as "stream_options.".
        """
        for name, value in (self.model_extra or {}).items():
            if name in HARMLESS or value in NOTHING or (name in NEUTRAL and value == NEUTRAL[name]):
                continue
            raise APIError(400, f"{where}{name} is not supported by this server.", where + name)


class StreamOptions(_Strict):
    """`include_usage`: a last chunk with it. `continuous_usage_stats` (vLLM's): usage in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingRequest(_Strict):
    """Fields of both endpoints. None, the default of each, means: as the model's authors recommend."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Annotated[str | list[str] | None, _one_of("a string or a list of strings")] = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    # vLLM's.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    priority: int | None = None

    def check(self) -> None:
        """The fields, those of `stream_options`, and whether there is a stream for them."""
        super().check()
        if self.stream_options is not None:
            self.stream_options.reject_unknown("stream_options.")
            if not self.stream:
                raise APIError(400, "stream_options is only allowed with stream=true.", "stream_options")

    def sampling_params(self, defaults: SamplingParams, **more: Any) -> SamplingParams:
        """The parameters: what was sent, over `more`, over the model's defaults.

        Raises:
            APIError: a value out of range.
        """
        names = SamplingParams.__dataclass_fields__.keys() & type(self).model_fields.keys() - {"logprobs"}
        sent = {name: value for name in names if (value := getattr(self, name)) is not None}
        limit_name, limit = self.output_limit()
        if limit is not None:
            sent["max_tokens"] = limit
        try:
            if "logit_bias" in sent:
                sent["logit_bias"] = {_token_id(key): value for key, value in sent["logit_bias"].items()}
            kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
            return replace(defaults, output_kind=kind, **(more | sent))
        except (ValueError, TypeError) as error:
            raise wrong_request(ValueError(str(error).replace("max_tokens", limit_name))) from None

    def output_limit(self) -> tuple[str, int | None]:
        """The field that says how many tokens an output may have: its name, for errors, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream holds the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    prompt: Annotated[
        str | list[int] | list[str] | list[list[int]],
        _one_of("text, a list of token ids, or a list of either"),
    ]
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    def prompts(self) -> list[Prompt]:
        """One prompt each; APIError if there is none."""
        if not self.prompt:
            raise APIError(400, "prompt must not be empty.", "prompt")
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else list(self.prompt)


class Conversation(_Strict):
    """The fields that make a prompt of messages. The chat template is the model's own, never the client's."""

    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def check(self) -> None:
        """Whether two fields contradict each other, or a message holds what we cannot do."""
        super().check()
        if self.add_generation_prompt and self.continue_final_message:
            text = "continue_final_message cannot be true with add_generation_prompt=true."
            raise APIError(400, text, "continue_final_message")
        for index, message in enumerate(self.messages or ()):
            for name in message.keys() - {"role", "content", "name", "refusal"}:
                if message[name] not in NOTHING:
                    where = f"messages.{index}.{name}"
                    raise APIError(400, f"{where} is not supported by this server.", where)


class ChatRequest(Conversation, SamplingRequest):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None

    def check(self) -> None:
        """Also whether `top_logprobs` has logprobs to choose from."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise APIError(400, "top_logprobs needs logprobs=true.", "top_logprobs")

    def output_limit(self) -> tuple[str, int | None]:
        """`max_completion_tokens` is the newer name of `max_tokens`, and counts if both are there."""
        if self.max_completion_tokens is None:
            return super().output_limit()
        return "max_completion_tokens", self.max_completion_tokens


class TokenizeRequest(Conversation):
    """POST /tokenize: of a prompt, or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None

    def check(self) -> None:
        """Also whether there is one thing to tokenize, and special tokens have one source."""
        super().check()
        if (self.prompt is None) == (self.messages is None):
            raise APIError(400, "give prompt or messages, and not both.", "prompt")
        if self.messages is not None and self.add_special_tokens:
            text = "add_special_tokens cannot be true with messages: the chat template adds them."
            raise APIError(400, text, "add_special_tokens")


class DetokenizeRequest(_Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def _token_id(key: str) -> int:
    """The token id that a key of `logit_bias` writes: keys of JSON objects are strings.

    `int` alone would take " 6_5" for 65.
    """
    if not re.fullmatch("0|[1-9][0-9]{0,17}", key):
        raise ValueError(f'logit_bias must have token ids as keys, such as "65", got {key!r}.')
    return int(key)
