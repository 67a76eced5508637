"""From what a user typed to a `SequenceGroup`: the gate of the engine.

What can be wrong with a request is found here, before any state has changed: a prompt that is empty or too
long, a token id that does not exist, parameters that need a tokenizer where there is none. A request that
passes is complete: the scheduler decides everything else from its group alone.

A prompt is a `str`, `[int, ...]`, `{"prompt": str}` or `{"prompt_token_ids": [int, ...]}`; `render_chat`
in `prompts.py` makes one of a conversation. The way of one request::

    "The sky", SamplingParams(max_tokens=5, stop_token_ids=[7])       what the user typed
        tokenize            [504, 6376]                               ids of the model's vocabulary?
        check               2 tokens + 5 <= max_model_len?            every id the parameters name exists?
    SequenceGroup(seqs=[Sequence([504, 6376])],                       what the scheduler works with
                  max_num_tokens=7, eos_token_ids={2}, stop_token_ids={2, 7})

An error inside a step would cost all the other requests of the batch their progress, because the KV cache is
half written then (see `LLMEngine.step`). That is why even unlikely values are checked here.

vLLM V1: `vllm/v1/engine/input_processor.py` (`processor.py` before), `vllm/inputs/`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivllm.config import EngineConfig, ModelConfig, require_number
from minivllm.prompts import Prompt, encode, list_of_ints
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.sequence import Sequence, SequenceGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Request:
    """What a front end asks for: a prompt, how to continue it, and how urgent that is.

    `arrival_time` is in seconds of `time.perf_counter()`, None: now. With scheduling_policy="priority", a
    smaller `priority` goes first.
    """

    prompt: Prompt
    params: SamplingParams | BeamSearchParams
    arrival_time: float | None = None
    priority: int = 0


@dataclass(eq=False)
class InputProcessor:
    """Checks requests and turns them into sequence groups.

    Args:
        config: for the policy, the most log-probabilities a request may ask for, and the seed from which
            requests without a seed get theirs.
        model_config: for the vocabulary size and the end-of-sequence tokens.
        tokenizer: None if the engine runs on token ids alone.
        max_model_len: the most tokens, prompt and output, that a sequence may have.
    """

    config: EngineConfig
    model_config: ModelConfig
    tokenizer: PreTrainedTokenizerFast | None
    max_model_len: int

    def __post_init__(self) -> None:
        self._seeds = random.Random(self.config.seed)

    def make_group(self, request_id: str, request: Request, seq_id: int) -> SequenceGroup:
        """Check one request and make its group, with one sequence that holds the prompt.

        Changes nothing, here or in the engine. The limits that parameters leave open are decided now:
        `max_tokens` and `max_model_len` become one `max_num_tokens`, `ignore_eos` an empty set.

        Example, a prompt of 6 tokens and max_model_len 32: max_tokens=16 gives max_num_tokens 22, as do the
        defaults; max_tokens=100 and max_tokens=None give 32. A prompt of 32 is refused.

        Args:
            request_id: the name that outputs will carry. Only the scheduler knows whether it is free.
            request: `SamplingParams` and `BeamSearchParams` have checked what they can check alone.
            seq_id: an unused id for the group's first sequence.

        Raises:
            ValueError, TypeError: with vLLM's text where it has one.
        """
        if not isinstance(request_id, str):
            raise TypeError(f"request_id must be a string, got {type(request_id).__name__}.")
        params = request.params
        self._check_priority(request.priority)
        arrival_time = time.perf_counter()
        if request.arrival_time is not None:
            arrival_time = require_number("arrival_time", request.arrival_time)
        text, token_ids = self.tokenize(request.prompt)
        self._check_prompt(token_ids)
        if isinstance(params, SamplingParams):
            self._check_sampling_params(params)
        elif not isinstance(params, BeamSearchParams):
            raise TypeError(
                f"params must be SamplingParams or BeamSearchParams, got {type(params).__name__}."
            )
        elif self.config.speculative_config is not None:
            raise ValueError(
                "beam search does not go with speculative_config: a beam offers several next tokens, and a "
                "draft is right for one of them at most. Make an engine without speculative_config for it."
            )
        # Some configs name an end-of-sequence id that the output matrix does not have. It can never be
        # sampled, and forbidding it (min_tokens) would be an index error in the middle of a step.
        vocab_size = self.model_config.vocab_size
        # A config may name several: Llama 3's chat models end at "end of text" and at "end of turn". And a
        # fine-tune may name its end of turn in the tokenizer alone (`<|im_end|>`); vLLM stops there too.
        named = {*self.model_config.eos_token_ids, getattr(self.tokenizer, "eos_token_id", None)} - {None}
        known_eos = frozenset(token for token in named if token < vocab_size)
        eos = frozenset() if params.ignore_eos else known_eos
        # As in vLLM, the tokenizer's id ends a text without a reason to name; any other one is named.
        unnamed = eos & {getattr(self.tokenizer, "eos_token_id", None)} or eos
        max_tokens = params.max_tokens if params.max_tokens is not None else self.max_model_len
        return SequenceGroup(
            request_id=request_id,
            prompt=text,
            seqs=[Sequence(seq_id, token_ids, seed=0)],  # see `give_seed`
            params=params,
            max_num_tokens=min(len(token_ids) + max_tokens, self.max_model_len),
            eos_token_ids=unnamed,
            stop_token_ids=eos.union(params.stop_token_ids or ()),
            bad_words_token_ids=bad_word_forms(self.tokenizer, params.bad_words or (), vocab_size),
            arrival_time=arrival_time,
            priority=request.priority,
        )

    def _check_priority(self, priority: int) -> None:
        """Refuse a priority that the scheduling policy would not look at, as vLLM does."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, but is of type {type(priority).__name__}.")
        if priority != 0 and self.config.scheduling_policy != "priority":
            raise ValueError(
                f"Got priority {priority} but Priority scheduling is not enabled. "
                f'Make the engine with scheduling_policy="priority".'
            )

    def give_seed(self, group: SequenceGroup) -> None:
        """Set the seed of a request: its own, or the next of the engine's.

        This comes last, when the request can no longer be refused. Otherwise a refused request would use up a
        seed, and the requests after it would draw other tokens than without it.
        """
        explicit = group.params.explicit_seed
        group.seqs[0].seed = self._seeds.getrandbits(32) if explicit is None else explicit

    def tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The prompt's text (None if only ids were given) and token ids.

        With both given the ids count, and the text is only handed back: `render_chat` gives both, because
        tokenizing a rendered template again would add the special tokens twice.

        Raises:
            TypeError: not a prompt, or ids that are not ints.
            ValueError: a dict with other keys, text that is not Unicode, or text for an engine without a
                tokenizer.
        """
        if isinstance(prompt, str):
            prompt = {"prompt": prompt}
        elif isinstance(prompt, list | tuple) or hasattr(prompt, "tolist"):
            prompt = {"prompt_token_ids": prompt}
        if not isinstance(prompt, dict):
            raise TypeError(
                'a prompt must be a string, a list of ints, {"prompt": str} or {"prompt_token_ids": [int]}, '
                f"got {type(prompt).__name__}."
            )
        if not prompt or not prompt.keys() <= {"prompt", "prompt_token_ids"}:
            names = sorted(map(str, prompt))
            raise ValueError(f'a prompt dict needs "prompt" or "prompt_token_ids", got the keys {names}.')
        text, has_ids = prompt.get("prompt"), "prompt_token_ids" in prompt
        if not isinstance(text, str) and not (text is None and has_ids):
            raise TypeError(f"the text of a prompt must be a string, got {type(text).__name__}.")
        if has_ids:
            return text, list_of_ints(prompt["prompt_token_ids"])
        if self.tokenizer is None:
            raise ValueError(
                'This engine was made with skip_tokenizer_init=True: give {"prompt_token_ids": [int]}.'
            )
        return text, encode(self.tokenizer, text, add_special_tokens=True)

    def _check_prompt(self, token_ids: list[int]) -> None:
        """Refuse what cannot be embedded (empty, unknown ids) or leaves no room for one more token.

        A tokenizer may know more tokens than the model, after some were added to it: looking up such an
        id is an index error on a CPU; on a GPU it leaves the device unusable for the rest of the process.
        """
        if not token_ids:
            raise ValueError("The decoder prompt cannot be empty")
        vocab_size = self.model_config.vocab_size
        outside = [token for token in token_ids if not 0 <= token < vocab_size]
        if outside:
            raise ValueError(f"Token id {outside[0]} is out of vocabulary (0 to {vocab_size - 1}).")
        if len(token_ids) >= self.max_model_len:
            plus, what = "", ""
            if len(token_ids) == self.max_model_len:
                plus = " plus the number of requested output tokens (at least 1)"
                what = " (prompt + requested output tokens)"
            raise ValueError(
                f"The decoder prompt (length {len(token_ids)}){plus} is longer than the maximum model length "
                f"of {self.max_model_len}. Make sure that `max_model_len` is no smaller than the number of "
                f"text tokens{what}."
            )

    def _check_sampling_params(self, params: SamplingParams) -> None:
        """What `SamplingParams` cannot check alone: it knows neither vocabulary nor tokenizer.

        Raises:
            ValueError: a token id of `vocab_size` or more, more log-probabilities than the engine gives, or
                text to look for where there is no text.
        """
        vocab_size = self.model_config.vocab_size
        if any(token >= vocab_size for token in params.allowed_token_ids or ()):
            raise ValueError("allowed_token_ids contains out-of-vocab token id!")
        for name in ("logit_bias", "stop_token_ids"):
            outside = [token for token in getattr(params, name) or () if token >= vocab_size]
            if outside:
                raise ValueError(
                    f"token_id(s) {outside} in {name} contain out-of-vocab token ids. "
                    f"Vocabulary size: {vocab_size}"
                )
        # There is a limit because each entry asked for costs one Python object per token. "All" (-1) counts
        # as the size of the vocabulary: for SmolLM2 that is 49,152 objects per token.
        for kind, name in (("sample", "logprobs"), ("prompt", "prompt_logprobs")):
            count = getattr(params, name)
            asked = vocab_size if count == -1 else count or 0
            most = vocab_size if self.config.max_logprobs == -1 else self.config.max_logprobs
            if asked > most:
                raise ValueError(
                    f"Requested {kind} logprobs of {asked}, which is greater than max allowed: {most}"
                )
        if self.tokenizer is None and (params.stop_strings or params.bad_words):
            raise ValueError("stop strings and bad_words need a tokenizer (skip_tokenizer_init=False).")


def bad_word_forms(
    tokenizer: PreTrainedTokenizerFast | None, bad_words: Iterable[str], vocab_size: int
) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word at the start of a text, after a space and at the start of a line, each once.

    "cat" at the start of a line and "cat" in the middle of a sentence are different tokens, and some words
    are cut differently in the two places. SmolLM2's tokens::

        "cat"         [9786]           " cat"         [2644]
        "Einstein"    [53, 13817]      " Einstein"    [16211]         vLLM forbids the first form only
        "7"           [39]             " 7"           [216, 39]       the first ends the second as well

    Where a tokenizer puts a space before every text (Llama 2), the start of a line has a form of its own.
    The word can still appear in a spelling that `encode` does not give ("Ein" + "stein"). And a form may end
    a longer word: where each digit is a token, "7" forbids "17", too.

    vLLM takes the form after a space only if that has as many tokens as the first form and begins with
    another token (vLLM's issue 23886), and it takes no form at the start of a line.

    Raises:
        ValueError: a word without tokens, or with one of `vocab_size` or more.
    """
    forms: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    for word in (each.lstrip(" ") for each in bad_words):
        places = (("", 0), (" ", 0), ("\n", len(encode(tokenizer, "\n", False))))
        made = [tuple(encode(tokenizer, before + word, False)[length:]) for before, length in places]
        if not any(made):
            raise ValueError("bad_words entries must tokenize to at least one token.")
        # Nothing is left of a line break at the start of a line, where the two are one token.
        forms.update(dict.fromkeys(form for form in made if form))
    tokens = dict.fromkeys(token for form in forms for token in form)
    outside = [token for token in tokens if token >= vocab_size]
    if outside:
        raise ValueError(
            f"The model vocabulary size is {vocab_size}, but the following tokens were specified as bad: "
            f"{outside}."
        )
    return tuple(forms)
