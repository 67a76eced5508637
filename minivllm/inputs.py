"""From what a user typed to a `SequenceGroup`: the gate of the engine.

Everything that can be wrong with a request is found here, before any state has changed: a prompt that is
empty or too long, a token id that does not exist, parameters that need what is not there. What passes is
complete: the scheduler decides everything else from the group alone.

A prompt is a `str`, `{"prompt": str}`, `{"prompt_token_ids": [int, ...]}`. The way of one request::

    "The sky", SamplingParams(max_tokens=5, stop_token_ids=[7])       what the user typed
        tokenize            [504, 6376]                               ids of the model's vocabulary?
        check               2 tokens + 5 <= max_model_len?            every id the parameters name exists?
    SequenceGroup(seqs=[Sequence([504, 6376])],                       what the scheduler works with
                  max_num_tokens=7, eos_token_ids={2}, stop_token_ids={2, 7})

An error that is found later, inside a step, would cost all the other requests of the batch their progress:
the KV cache is half written then (see `LLMEngine.step`). That is why even unlikely values are looked at here.

vLLM V1: `vllm/v1/engine/input_processor.py` (`processor.py` before), `vllm/inputs/`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minivllm.config import EngineConfig, ModelConfig, require_number
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.sequence import Sequence, SequenceGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = str | dict[str, object]
Message = dict[str, str]


@dataclass(frozen=True)
class Request:
    """What a front end asks for: a prompt, how to continue it, and what only the scheduler looks at.

    `arrival_time` is in seconds of `time.perf_counter()`, None: now. With scheduling_policy="priority", a
    smaller `priority` goes first.
    """

    prompt: Prompt
    params: SamplingParams | BeamSearchParams
    arrival_time: float | None = None
    priority: int = 0


class InputProcessor:
    """Checks requests and turns them into sequence groups.

    Args:
        config: for the policy, the most log-probabilities a request may ask for, and the seed that requests
            without one of their own get theirs from.
        model_config: for the vocabulary size and the end-of-sequence tokens.
        tokenizer: None if the engine runs on token ids alone.
        max_model_len: the most tokens, prompt and output, that a sequence may have.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        tokenizer: PreTrainedTokenizerFast | None,
        max_model_len: int,
    ) -> None:
        self.config = config
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._seeds = random.Random(config.seed)

    def make_group(self, request_id: str, request: Request, seq_id: int) -> SequenceGroup:
        """Check one request and make its group, with one sequence that holds the prompt.

        Changes nothing, here or in the engine. The limits that parameters leave open are decided now:
        `max_tokens` and `max_model_len` become one `max_num_tokens`, `ignore_eos` an empty set.

        Example, a prompt of 6 tokens and max_model_len 32: max_tokens=16 gives max_num_tokens 22, as do the
        defaults; max_tokens=100 and max_tokens=None give 32. A prompt of 32 is refused.

        Args:
            request_id: the name outputs will carry. Whether it is free only the scheduler knows.
            request: its parameters are valid in themselves already.
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
        # Some configs name an end-of-sequence id that the output matrix does not have. It can never be
        # sampled, and to forbid it (min_tokens) would be an index error in the middle of a step.
        vocab_size = self.model_config.vocab_size
        # A config may name several: Llama 3's chat models end at "end of text" and at "end of turn".
        known_eos = frozenset(token for token in self.model_config.eos_token_ids if token < vocab_size)
        eos = frozenset() if params.ignore_eos else known_eos
        # `BeamSearchParams` has neither stop tokens nor bad words.
        stop_token_ids = frozenset(getattr(params, "stop_token_ids", None) or ())
        max_tokens = params.max_tokens if params.max_tokens is not None else self.max_model_len
        return SequenceGroup(
            request_id=request_id,
            prompt=text,
            seqs=[Sequence(seq_id, token_ids, seed=0)],  # see `give_seed`
            params=params,
            max_num_tokens=min(len(token_ids) + max_tokens, self.max_model_len),
            eos_token_ids=eos,
            stop_token_ids=eos | stop_token_ids,
            bad_words_token_ids=self._bad_words(getattr(params, "bad_words", None)),
            arrival_time=arrival_time,
            priority=request.priority,
        )

    def _check_priority(self, priority: int) -> None:
        """A priority that nothing would look at is refused, as in vLLM."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"priority must be an int, but is of type {type(priority).__name__}.")
        if priority != 0 and self.config.scheduling_policy != "priority":
            raise ValueError(
                f"Got priority {priority} but Priority scheduling is not enabled. "
                f'Make the engine with scheduling_policy="priority".'
            )

    def give_seed(self, group: SequenceGroup) -> None:
        """Set the seed of a request: its own, or the next of the engine's.

        This comes last, when the request can no longer be refused: otherwise a refused one would use up a
        seed, and the requests after it would get other tokens than without it.
        """
        explicit = group.params.explicit_seed if isinstance(group.params, SamplingParams) else None
        group.seqs[0].seed = self._seeds.getrandbits(32) if explicit is None else explicit

    def tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The prompt's text (None if only ids were given) and token ids.

        With both given the ids count, and the text is only handed back: `LLM.chat` does so, because
        tokenizing a rendered template again would add the special tokens twice.

        Raises:
            TypeError: no prompt at all, or ids that are no ints.
            ValueError: a dict with other keys, or text for an engine without a tokenizer.
        """
        if isinstance(prompt, dict):
            keys = set(prompt)
            if keys == {"prompt"}:
                prompt = prompt["prompt"]
            elif keys in ({"prompt_token_ids"}, {"prompt", "prompt_token_ids"}):
                text = prompt.get("prompt")
                if not isinstance(text, str | None):
                    raise TypeError(f"the text of a prompt must be a string, got {type(text).__name__}.")
                return text, _list_of_ints(prompt["prompt_token_ids"])
            else:
                names = sorted(map(str, keys))
                raise ValueError(f'a prompt dict needs "prompt" or "prompt_token_ids", got the keys {names}.')
        if not isinstance(prompt, str):
            raise TypeError(
                'a prompt must be a string, {"prompt": str} or {"prompt_token_ids": [int]}, '
                f"got {type(prompt).__name__}."
            )
        if self.tokenizer is None:
            raise ValueError(
                'This engine was made with skip_tokenizer_init=True: give {"prompt_token_ids": [int]}.'
            )
        return prompt, self.tokenizer.encode(prompt)

    def _check_prompt(self, token_ids: list[int]) -> None:
        """Refuse what cannot be embedded (empty, unknown ids) or leaves no room for one more token.

        A tokenizer may know more tokens than the model, after somebody added some to it: looking up such an
        id is an index error on a CPU; on a GPU it leaves the device unusable for the rest of the process.
        """
        if not token_ids:
            raise ValueError("The decoder prompt cannot be empty")
        vocab_size = self.model_config.vocab_size
        outside = [token for token in token_ids if not 0 <= token < vocab_size]
        if outside:
            raise ValueError(f"Token id {outside[0]} is out of vocabulary (0 to {vocab_size - 1}).")
        if len(token_ids) > self.max_model_len:
            raise ValueError(
                f"The decoder prompt (length {len(token_ids)}) is longer than the maximum model length of "
                f"{self.max_model_len}. Make sure that `max_model_len` is no smaller than the number of text "
                f"tokens."
            )
        if len(token_ids) == self.max_model_len:
            raise ValueError(
                f"The decoder prompt (length {len(token_ids)}) plus the number of requested output tokens "
                f"(at least 1) is longer than the maximum model length of {self.max_model_len}. Make sure "
                f"that `max_model_len` is no smaller than the number of text tokens (prompt + requested "
                f"output tokens)."
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
        # A limit of its own, because each asked-for entry costs a Python object for each token. "All of them"
        # counts as the size of the vocabulary: for SmolLM2 -1 means 49,152 objects a token.
        for kind, name in (("sample", "logprobs"), ("prompt", "prompt_logprobs")):
            count = getattr(params, name)
            asked = vocab_size if count == -1 else count or 0
            if asked > self.config.max_logprobs:
                raise ValueError(
                    f"Requested {kind} logprobs of {asked}, which is greater than max allowed: "
                    f"{self.config.max_logprobs}"
                )
        if self.tokenizer is None and (params.stop_strings or params.bad_words):
            raise ValueError("stop strings and bad_words need a tokenizer (skip_tokenizer_init=False).")

    def _bad_words(self, bad_words: list[str] | None) -> tuple[tuple[int, ...], ...]:
        """Token sequences of the bad words, each at the start of a text and after a space. vLLM's rule.

        "cat" is another token at the start of a line than in the middle of a sentence. Both are kept,
        unless the one with the space does not begin with a token of its own. SmolLM2's tokens::

            "cat"      [9786]           " cat"      [2644]           both are kept
            "foobar"   [15236, 6299]    " foobar"   [29856, 6299]    both are kept
            "7"        [39]             " 7"        [216, 39]        only [39]: it ends the other as well
        """
        sequences: list[tuple[int, ...]] = []
        for word in bad_words or ():
            plain, spaced = (
                tuple(self.tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False))
                for prefix in ("", " ")
            )
            if not plain:
                raise ValueError("bad_words entries must tokenize to at least one token.")
            outside = [token for token in plain + spaced if token >= self.model_config.vocab_size]
            if outside:
                raise ValueError(
                    f"The model vocabulary size is {self.model_config.vocab_size}, but the following tokens "
                    f"were specified as bad: {outside}."
                )
            sequences.append(plain)
            if len(spaced) == len(plain) and spaced[0] != plain[0]:
                sequences.append(spaced)
        return tuple(sequences)


def as_list(prompts: Prompt | list[Prompt]) -> list[Prompt]:
    """A single prompt as a list of one; anything but prompts is a TypeError.

    Example: "Hi" -> ["Hi"], and ("a", "b") -> ["a", "b"]. A bare list of ints passes here and is refused by
    `tokenize`, one int being no prompt: token ids come in a dict, `{"prompt_token_ids": [1, 2, 3]}`.
    """
    if isinstance(prompts, str | dict):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise TypeError(f"prompts must be a prompt or a list of prompts, got {type(prompts).__name__}.")
    return list(prompts)


def as_conversations(messages: list[Message] | list[list[Message]]) -> list[list[Message]]:
    """One conversation as a list of one, each message checked.

    A chat template would not notice: in Jinja what is missing is an empty string, so a message without
    "content" becomes a prompt that looks right and asks nothing.

    Raises:
        TypeError: something that is no list, no conversation or no message.
        ValueError: an empty list: there would be no turn to answer.
    """
    if not isinstance(messages, list | tuple):
        raise TypeError(f"messages must be a list of messages, got {type(messages).__name__}.")
    if not messages:
        raise ValueError("messages is empty: give at least one conversation with one message.")
    # A conversation is a list of dicts; several are a list of lists. The first element tells them apart.
    conversations = list(messages) if isinstance(messages[0], list | tuple) else [list(messages)]
    for conversation in conversations:
        if not isinstance(conversation, list | tuple):
            raise TypeError(f"a conversation must be a list of messages, got {type(conversation).__name__}.")
        if not conversation:
            raise ValueError("a conversation is empty: give at least one message.")
        for message in conversation:
            roles = message if isinstance(message, dict) else {}
            if not all(isinstance(roles.get(key), str) for key in ("role", "content")):
                raise TypeError(f'a message must be {{"role": str, "content": str}}, got {message!r}.')
    return conversations


def render_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[Message],
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> dict[str, object]:
    """One conversation as a prompt: text and token ids, rendered by the model's chat template."""
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=chat_template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt and not continue_final_message,
        continue_final_message=continue_final_message,
    )
    # The template has put the special tokens in already.
    return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}


def _list_of_ints(token_ids: object) -> list[int]:
    """`token_ids` as a list of Python ints (numpy's are converted); TypeError if it holds anything else.

    Always a new list: a caller who goes on using theirs must not change a queued prompt.
    """
    if hasattr(token_ids, "tolist"):  # numpy arrays and torch tensors
        token_ids = token_ids.tolist()
    if not isinstance(token_ids, list | tuple):
        raise TypeError(f"prompt_token_ids must be a list of ints, got {type(token_ids).__name__}.")
    for token in token_ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise TypeError(f"prompt_token_ids must contain only integers, got {token!r}.")
    return list(token_ids)
