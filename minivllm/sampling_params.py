"""What a request asks for: `SamplingParams`, and `BeamSearchParams` for beam search.

Names, defaults, ranges and error texts are vLLM's. Both classes are frozen and validate themselves when
they are made, so a bad value is reported where it was typed and never reaches the engine. They keep the
fields as the user typed them; what the engine needs in another form is a property::

    >>> params = SamplingParams(temperature=0.8, top_p=0.95, stop="\\n")
    >>> params.stop_strings
    ('\\n',)
    >>> SamplingParams(temperature=0.0, top_p=0.5).is_greedy     # top_p then has no effect
    True

A wrong type is a TypeError and a value out of range a ValueError. True is not taken for 1, nor 2.0 for 2:
such values come from a mistake more often than from intent. What needs the vocabulary or the tokenizer to be
judged (does token 50,000 exist?) is checked when the request is added, in `inputs.py`.

Beware: `max_tokens` is 16 by default, as in vLLM. Text that stops in mid-sentence with
`finish_reason="length"` is this default at work.

Paper: section 5 (the frontend). vLLM V1: `vllm/sampling_params.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from minivllm.config import require_number

# Below this a temperature means greedy; between it and MIN_TEMPERATURE it is lifted to the latter, as in
# vLLM. In float16, which ends at 65,504, a logit of 30 divided by 1e-4 is infinite, and inf - inf in the
# softmax is NaN. (Our logits are float32, which would bear it.) Nothing is lost: at 0.01 a lead of 0.1
# between two logits is already odds of e^10, 22,026 to 1.
GREEDY_TEMPERATURE = 1e-5
MIN_TEMPERATURE = 1e-2
# From here on all tokens are equally likely anyway, and infinity in float32 would be near: a forbidden
# token has the logit -inf, and -inf / inf is NaN.
MAX_TEMPERATURE = 1e6
# A million tokens to the power of 16 is still a float. Useful penalties are below 3.
MAX_LENGTH_PENALTY = 16.0


class RequestOutputKind(Enum):
    """What each `RequestOutput` of a running request holds."""

    CUMULATIVE = "cumulative"  # everything so far, every step
    DELTA = "delta"  # only what is new since the last output
    FINAL_ONLY = "final_only"  # one output, when the request is done


def _finite(name: str, value: object) -> float:
    """Return `value` if it is a number other than NaN and infinity.

    For the fields that are checked with one comparison. `nan < 0.0` is False, as is `nan >= 0.0`, so NaN
    would pass as a temperature and turn a whole row of logits into NaN.

    Raises:
        TypeError: not a number.
        ValueError: NaN, infinity, or an int such as 10**400.
    """
    try:
        finite = math.isfinite(require_number(name, value))
    except OverflowError:  # an int that no float can hold
        finite = False
    if not finite:
        raise ValueError(f"{name} must be a finite number, got {value}.")
    return value


def _integer(name: str, value: object) -> int:
    """Return `value` if it is an int (True and 2.0 are not); TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is of type {type(value).__name__}.")
    return value


def _token_ids(name: str, value: object) -> None:
    """Raise unless `value` is None or a collection (it is read more than once) of non-negative ints.

    Raises:
        TypeError: no collection.
        ValueError: something in it is no token id; vLLM's error for that.
    """
    if value is None:
        return
    # Both are collections in Python: a string of its characters, a dict of its keys, without the values.
    if isinstance(value, str | dict) or not isinstance(value, Collection):
        raise TypeError(f"{name} must be a list of token ids, but is of type {type(value).__name__}.")
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        raise ValueError(f"{name} must contain only integers, got {value}.")
    # Below zero an index counts from the end: -1 would be the vocabulary's last token, and no error.
    if any(token < 0 for token in value):
        raise ValueError(f"{name} must contain only non-negative token ids, got {value}.")


def _texts(name: str, value: object) -> None:
    """Raise TypeError unless `value` is None or a collection of strings; one string is not.

    `bad_words="cat"` would otherwise forbid the letters c, a and t.
    """
    if value is None:
        return
    if isinstance(value, str | dict) or not isinstance(value, Collection):
        raise TypeError(f"{name} must be a list of strings, but is of type {type(value).__name__}.")
    for text in value:
        if not isinstance(text, str):
            raise TypeError(f"{name} must contain only strings, got {text!r}.")


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
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None

    # `dataclasses.replace` makes its copy through here as well, so a changed copy is checked again.
    def __post_init__(self) -> None:
        self._check_choosing()
        self._check_tokens()
        self._check_stopping()
        self._check_reporting()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken; top_p, top_k, min_p and seed then do nothing."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def effective_temperature(self) -> float:
        """The temperature logits are divided by (not asked for when greedy)."""
        return min(max(self.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whatever form they were given in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def explicit_seed(self) -> int | None:
        """The seed asked for; -1 means none, as in vLLM."""
        return None if self.seed == -1 else self.seed

    @property
    def has_penalties(self) -> bool:
        """Whether any of the three penalties changes a logit."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    def _check_choosing(self) -> None:
        """Fields that say how a token is chosen. NaN fails each comparison below, as it should."""
        # Two kinds of checks follow: `not low <= x <= high` refuses NaN by itself, `x < low` needs `_finite`.
        # A wrong type of n is the one that vLLM reports as a ValueError.
        if isinstance(self.n, bool) or not isinstance(self.n, int):
            raise ValueError(f"n must be an int, but is of type {type(self.n)}")
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= require_number(name, getattr(self, name)) <= 2.0:
                raise ValueError(f"{name} must be in [-2, 2], got {getattr(self, name)}.")
        if _finite("repetition_penalty", self.repetition_penalty) <= 0.0:
            raise ValueError(f"repetition_penalty must be greater than zero, got {self.repetition_penalty}.")
        if _finite("temperature", self.temperature) < 0.0:
            raise ValueError(f"temperature must be non-negative, got {self.temperature}.")
        if GREEDY_TEMPERATURE <= self.temperature < MIN_TEMPERATURE:
            warnings.warn(
                f"temperature {self.temperature} is less than {MIN_TEMPERATURE}, which may cause numerical "
                f"errors nan or inf in tensors. We have maxed it out to {MIN_TEMPERATURE}.",
                # 1 is this method, 2 `__post_init__`, 3 the `__init__` that dataclass wrote.
                stacklevel=4,  # points at the line that made these parameters
            )
        if not 0.0 < require_number("top_p", self.top_p) <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int):
            raise TypeError(f"top_k must be an integer, got {type(self.top_k).__name__}")
        if self.top_k < -1:
            raise ValueError(f"top_k must be 0 (disable), or at least 1, got {self.top_k}.")
        if not 0.0 <= require_number("min_p", self.min_p) <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}.")
        if self.seed is not None:
            _integer("seed", self.seed)
        # n equal texts: never what was meant.
        if self.is_greedy and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")

    def _check_tokens(self) -> None:
        """Fields that name tokens or words; a number too large for the vocabulary is found in `inputs.py`."""
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, dict):
                raise TypeError(
                    f"logit_bias must be a dict of token id to bias, got {type(self.logit_bias).__name__}."
                )
            _token_ids("logit_bias", list(self.logit_bias))
            for bias in self.logit_bias.values():
                _finite("logit_bias value", bias)
        _token_ids("allowed_token_ids", self.allowed_token_ids)
        # With nothing allowed every logit is -inf, and the softmax of such a row is NaN.
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) == 0:
            raise ValueError("allowed_token_ids is not None and empty!")
        _texts("bad_words", self.bad_words)
        # It has no token that could be forbidden.
        if any(not word for word in self.bad_words or ()):
            raise ValueError(f"bad_words cannot contain an empty string. Got bad_words={self.bad_words}")

    def _check_stopping(self) -> None:
        """Fields that say when the text ends."""
        if self.max_tokens is not None and _integer("max_tokens", self.max_tokens) < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if _integer("min_tokens", self.min_tokens) < 0:
            raise ValueError(f"min_tokens must be greater than or equal to 0, got {self.min_tokens}.")
        # Until min_tokens is reached no token may end the text, so the two would contradict each other.
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, "
                f"got {self.min_tokens}."
            )
        if not isinstance(self.stop, str):
            _texts("stop", self.stop)
        # The empty string stands at the beginning of every text: it would end all of them at once.
        if any(not text for text in self.stop_strings):
            raise ValueError("stop cannot contain an empty string.")
        # They are looked for in the text, and without detokenizing there is none.
        if self.stop_strings and not self.detokenize:
            raise ValueError(
                "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
            )
        _token_ids("stop_token_ids", self.stop_token_ids)

    def _check_reporting(self) -> None:
        """Fields that say what comes back."""
        # How many are too many is the engine's to say: `EngineConfig.max_logprobs`, checked in `inputs.py`.
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and _integer(name, value) < -1:
                raise ValueError(f"{name} must be non-negative or -1, got {value}.")
        for name in (
            "ignore_eos", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
            "include_stop_str_in_output",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise TypeError(f"output_kind must be a RequestOutputKind, got {self.output_kind!r}.")


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
    when no running beam of the present length can beat the worst of them, "never" when none of any length
    can.

    Raises:
        ValueError: a value outside its range.
        TypeError: a value of the wrong type.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        if _integer("beam_width", self.beam_width) < 1:
            raise ValueError(f"beam_width must be at least 1, got {self.beam_width}.")
        if _integer("max_tokens", self.max_tokens) < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if require_number("temperature", self.temperature) != 0.0:
            raise ValueError("temperature must be 0 when using beam search.")
        if abs(_finite("length_penalty", self.length_penalty)) > MAX_LENGTH_PENALTY:
            raise ValueError(
                f"length_penalty must be in [-{MAX_LENGTH_PENALTY}, {MAX_LENGTH_PENALTY}], "
                f"got {self.length_penalty}."
            )
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(f'early_stopping must be True, False or "never", got {self.early_stopping!r}.')
