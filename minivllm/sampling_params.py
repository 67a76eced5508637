"""What a request asks for: `SamplingParams`, and `BeamSearchParams` for beam search.

Names, defaults, ranges and error texts are vLLM's. Both classes are frozen and validate themselves when
they are made, so a bad value is reported where it was typed and never reaches the engine. They keep the
fields as the user typed them (a tiny temperature excepted), of lists and dictionaries a copy of their own;
what the engine needs in another form is a property::

    >>> params = SamplingParams(temperature=0.8, top_p=0.95, stop="\\n")
    >>> params.stop_strings
    ('\\n',)
    >>> SamplingParams(temperature=0.0, top_p=0.5).is_greedy     # top_p then has no effect
    True

What a field may hold stands beside it, as a list of rules. A wrong type is a TypeError and a value out of
range a ValueError. True is not taken for 1, nor 2.0 for 2: such values come from a mistake more often than
from intent. What needs the vocabulary or the tokenizer to be judged (does token 50,000 exist?) is checked
when the request is added, in `inputs.py`.

The sampler computes in float32, where 1e-320 is 0, 1e300 is infinite and 1 - 1e-9 is 1. Such values are taken
and do what their neighbours do: top_p=1e-320 leaves the likeliest token only, as top_p=1e-6 does.

Beware: `max_tokens` is 16 by default, as in vLLM. Text that stops in mid-sentence with
`finish_reason="length"` is this default at work.

Paper: section 5 (the frontend). vLLM V1: `vllm/sampling_params.py`.
"""

# ruff: noqa: RUF009  (a default that is a function call is made once; `_field` is meant to be)

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection
from copy import copy
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from typing import Any

# Below this a temperature means greedy; between it and MIN_TEMPERATURE it is lifted to the latter, as in
# vLLM. In float16, which ends at 65,504, a logit of 30 divided by 1e-4 is infinite, and inf - inf in the
# softmax is NaN. (Our logits are float32, which would bear it.) Nothing is lost: at 0.01 a lead of 0.1
# between two logits is already odds of e^10, 22,026 to 1.
GREEDY_TEMPERATURE = 1e-5
MIN_TEMPERATURE = 1e-2
# From here on all tokens are equally likely anyway, and infinity in float32 would be near: a forbidden
# token has the logit -inf, and -inf / inf is NaN.
MAX_TEMPERATURE = 1e6


class RequestOutputKind(Enum):
    """What each `RequestOutput` of a running request holds."""

    CUMULATIVE = "cumulative"  # everything so far, every step
    DELTA = "delta"  # only what is new since the last output
    FINAL_ONLY = "final_only"  # one output, when the request is done


@dataclass(frozen=True)
class _Rule:
    """A condition on a value, and the error if the value fails it: the field's name, a space and `text`.

    `text` may hold `{value}`, `{kind}` (the name of its type) and `{type}` (the type as vLLM prints it).
    """

    is_good: Callable[[Any], object]
    text: str
    error: type[Exception] = ValueError


def _field(default: Any, *rules: _Rule) -> Any:
    """A dataclass field that must keep `rules`; each rule may rely on the rules before it."""
    return field(default=default, metadata={"rules": rules})


def _check(params: SamplingParams | BeamSearchParams) -> None:
    """Raise the error of the first rule that is broken. None is good wherever a field's type says so.

    What can be changed later (a list, a set, a dictionary) is replaced by a copy: a request which waits must
    not change with the list that its user fills for the next one.
    """
    for each in fields(params):
        value = getattr(params, each.name)
        rules = () if value is None and each.type.endswith("| None") else each.metadata["rules"]
        for rule in rules:
            if not rule.is_good(value):
                text = rule.text.format(value=value, kind=type(value).__name__, type=type(value))
                raise rule.error(f"{each.name} {text}")
        if isinstance(value, list | set | dict):
            object.__setattr__(params, each.name, copy(value))


def _type(is_good: Callable[[Any], bool], text: str) -> _Rule:
    return _Rule(is_good, text, TypeError)


def _range(is_good: Callable[[Any], bool], text: str) -> _Rule:
    return _Rule(is_good, text + ", got {value}.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_finite(value: float) -> bool:
    """Not infinite, not NaN (which fails every comparison), not an int too large for a float (10**400)."""
    return abs(value) <= sys.float_info.max


def _is_collection(value: object) -> bool:
    """A list, tuple or set, which can be read more than once.

    A string is a collection of its characters and a dict one of its keys, but neither is meant:
    `bad_words="cat"` would forbid the letters c, a and t.
    """
    return isinstance(value, Collection) and not isinstance(value, str | dict)


_INT = _type(_is_int, "must be an int, but is of type {kind}.")
_BOOL = _type(lambda x: isinstance(x, bool), "must be True or False, got {value!r}.")
_NUMBER = _type(_is_number, "must be a number, but is of type {kind}.")
_FINITE = (_NUMBER, _range(_is_finite, "must be a finite number"))
_AT_LEAST_1 = _range(lambda x: x >= 1, "must be at least 1")
_PENALTY = (_NUMBER, _range(lambda x: -2.0 <= x <= 2.0, "must be in [-2, 2]"))
_LOGPROBS = (_INT, _range(lambda x: x >= -1, "must be non-negative or -1"))
_IDS = (
    _range(lambda x: all(map(_is_int, x)), "must contain only integers"),
    # Below zero an index counts from the end: -1 would be the vocabulary's last token, and no error.
    _range(lambda x: min(x, default=0) >= 0, "must contain only non-negative token ids"),
)
_ID_LIST = (_type(_is_collection, "must be a list of token ids, but is of type {kind}."), *_IDS)
_LIST = _type(_is_collection, "must be a list of strings, but is of type {kind}.")
_STRINGS = _type(lambda x: all(isinstance(y, str) for y in x), "must contain only strings, got {value}.")
_STOP = (
    replace(_LIST, is_good=lambda x: isinstance(x, str) or _is_collection(x)),
    _STRINGS,
    # The empty string stands at the beginning of every text: it would end all of them at once.
    _Rule(lambda x: "" not in [x, *x], "cannot contain an empty string."),
)
_BIAS = (
    _type(lambda x: isinstance(x, dict), "must be a dict of token id to bias, got {kind}."),
    *_IDS,
    _type(lambda x: all(map(_is_number, x.values())), "must hold only numbers, got {value}."),
    _range(lambda x: all(map(_is_finite, x.values())), "must hold only finite numbers"),
)
# Rules of one field each.
_TOP_K_INT = _type(_is_int, "must be an integer, got {kind}")
_NO_EMPTY_WORD = _Rule(all, "cannot contain an empty string. Got bad_words={value}")
_TRUE = _Rule(bool, "cannot be False: the tokenizers of Llama models put no spaces there anyway.")
_EARLY = _Rule(lambda x: type(x) is bool or x == "never", 'must be True, False or "never", got {value!r}.')
_KIND = _type(lambda x: isinstance(x, RequestOutputKind), "must be a RequestOutputKind, got {value!r}.")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, when to stop, and what to report about it.

    Choosing: `temperature` (0 is greedy), `top_k` (0 or -1: off), `top_p`, `min_p`, the three penalties,
    `logit_bias`, `allowed_token_ids`, `bad_words`, `seed`. In which order they apply: `sampler.py`.

    Stopping: `max_tokens` (None: up to the model's length), `min_tokens`, `stop` strings,
    `stop_token_ids`, `ignore_eos`.

    Reporting: `n` completions of one prompt, `logprobs` and `prompt_logprobs` (how many of the most likely
    tokens; 0: only the token itself; -1: the whole vocabulary), `detokenize`, `skip_special_tokens`,
    `include_stop_str_in_output`, `output_kind`.

    The three penalties, in the order they apply, on a token with logit 2.0 that the output holds 3 times
    (what the prompt holds counts for `repetition_penalty` only)::

        repetition_penalty = 2.0    2.0 / 2.0     =  1.0     (a logit of -2.0 would become -4.0)
        frequency_penalty = 0.5     1.0 - 3 * 0.5 = -0.5     once for each time
        presence_penalty = 0.5     -0.5 - 0.5     = -1.0     once

    Raises:
        ValueError: a value outside its range.
        TypeError: a value of the wrong type.
    """

    # The order of the fields is vLLM's too, because dataclass fields may be given without their names.
    # vLLM reports a wrong type of n as a ValueError.
    n: int = _field(1, _Rule(_is_int, "must be an int, but is of type {type}"), _AT_LEAST_1)
    presence_penalty: float = _field(0.0, *_PENALTY)
    frequency_penalty: float = _field(0.0, *_PENALTY)
    repetition_penalty: float = _field(1.0, *_FINITE, _range(lambda x: x > 0.0, "must be greater than zero"))
    temperature: float = _field(1.0, *_FINITE, _range(lambda x: x >= 0.0, "must be non-negative"))
    top_p: float = _field(1.0, _NUMBER, _range(lambda x: 0.0 < x <= 1.0, "must be in (0, 1]"))
    top_k: int = _field(0, _TOP_K_INT, _range(lambda x: x >= -1, "must be 0 (disable), or at least 1"))
    min_p: float = _field(0.0, _NUMBER, _range(lambda x: 0.0 <= x <= 1.0, "must be in [0, 1]"))
    # The range of torch's generators. (One of 5,000 digits would fail in the middle of a step.)
    seed: int | None = _field(None, _INT, _range(lambda x: -(2**63) <= x < 2**64, "must fit in 64 bits"))
    stop: str | list[str] | None = _field(None, *_STOP)
    stop_token_ids: list[int] | None = _field(None, *_ID_LIST)
    ignore_eos: bool = _field(False, _BOOL)
    max_tokens: int | None = _field(16, _INT, _AT_LEAST_1)
    min_tokens: int = _field(0, _INT, _range(lambda x: x >= 0, "must be greater than or equal to 0"))
    # How many are too many is the engine's to say: `EngineConfig.max_logprobs`, checked in `inputs.py`.
    logprobs: int | None = _field(None, *_LOGPROBS)
    prompt_logprobs: int | None = _field(None, *_LOGPROBS)
    detokenize: bool = _field(True, _BOOL)
    skip_special_tokens: bool = _field(True, _BOOL)
    spaces_between_special_tokens: bool = _field(True, _BOOL, _TRUE)
    include_stop_str_in_output: bool = _field(False, _BOOL)
    output_kind: RequestOutputKind = _field(RequestOutputKind.CUMULATIVE, _KIND)
    logit_bias: dict[int, float] | None = _field(None, *_BIAS)
    # With nothing allowed every logit would be -inf, and the softmax of such a row is NaN.
    allowed_token_ids: list[int] | None = _field(None, *_ID_LIST, _Rule(len, "is not None and empty!"))
    bad_words: list[str] | None = _field(None, _LIST, _STRINGS, _NO_EMPTY_WORD)

    # `dataclasses.replace` makes its copy through here as well, so a changed copy is checked again.
    def __post_init__(self) -> None:
        _check(self)
        # n equal texts are not what the user meant.
        if self.is_greedy and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")
        # Until min_tokens is reached no token may end the text, so the two would contradict each other.
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            limit = f"less than or equal to max_tokens={self.max_tokens}"
            raise ValueError(f"min_tokens must be {limit}, got {self.min_tokens}.")
        # Stop strings are looked for in the text, and without detokenizing there is no text.
        if self.stop_strings and not self.detokenize:
            raise ValueError(
                "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
            )
        if GREEDY_TEMPERATURE <= self.temperature < MIN_TEMPERATURE:
            warnings.warn(
                f"temperature {self.temperature} is less than {MIN_TEMPERATURE}, which may cause numerical "
                f"errors nan or inf in tensors. We have maxed it out to {MIN_TEMPERATURE}.",
                stacklevel=3,  # the line that made these parameters; 2 is the `__init__` of the dataclass
            )
            # The one field that is changed, as in vLLM: a copy by `replace` then has no reason to warn again.
            object.__setattr__(self, "temperature", MIN_TEMPERATURE)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken; top_p, top_k, min_p and seed then do nothing."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def effective_temperature(self) -> float:
        """The temperature that logits are divided by (not used when greedy)."""
        return min(self.temperature, MAX_TEMPERATURE)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def explicit_seed(self) -> int | None:
        """The seed asked for; -1 means none, as in vLLM."""
        return None if self.seed == -1 else self.seed

    @property
    def has_penalties(self) -> bool:
        """Whether any of the three penalties changes a logit."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class BeamSearchParams:
    """Beam search: keep the `beam_width` most likely continuations (see `beam_search.py`).

    A hypothesis of `length` generated tokens is ranked by `cumulative_logprob / length ** length_penalty`.
    Every token lowers the sum, so without a penalty (0.0) the short win; above 0 the long gain::

        cumulative_logprob   length    penalty 0.0    penalty 1.0
        A   -2.0                2      -2.0  first    -1.0
        B   -3.2                4      -3.2           -0.8  first

    `temperature` is there because vLLM has it. It must stay 0: beams are compared, nothing is drawn.
    `early_stopping` is Hugging Face's: True stops as soon as `beam_width` hypotheses are finished, False
    when no running beam of the present length can beat the worst of them, "never" when no beam of any length
    can beat it.

    Raises:
        ValueError: a value outside its range.
        TypeError: a value of the wrong type.
    """

    beam_width: int = _field(MISSING, _INT, _AT_LEAST_1)
    max_tokens: int = _field(MISSING, _INT, _AT_LEAST_1)
    ignore_eos: bool = _field(False, _BOOL)
    temperature: float = _field(0.0, _NUMBER, _Rule(lambda x: x == 0, "must be 0 when using beam search."))
    # A million tokens to the power of 16 is still a float. Useful penalties are below 3.
    length_penalty: float = _field(1.0, *_FINITE, _range(lambda x: abs(x) <= 16.0, "must be in [-16, 16]"))
    include_stop_str_in_output: bool = _field(False, _BOOL)
    early_stopping: bool | str = _field(False, _EARLY)

    # Not fields: the engine reads these of every request, and a beam search cannot set them.
    stop_token_ids = bad_words = logprobs = prompt_logprobs = explicit_seed = None
    stop_strings = ()
    output_kind = RequestOutputKind.FINAL_ONLY

    def __post_init__(self) -> None:
        _check(self)
