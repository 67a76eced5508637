"""A sequence is one stream of tokens; a sequence group is all streams that grew from one prompt.

Plain requests are a group with one sequence. Asking for n completions, or for beam search, makes the one
sequence fork when its prompt has been computed::

    add_request(n=3)        prompt done, 3 tokens sampled        later

    group                   group                                group
      seq 0 [prompt]          seq 0 [prompt, a]                    seq 0 [prompt, a, d, e]   FINISHED_STOPPED
                              seq 1 [prompt, b]                    seq 1 [prompt, b, f, g]   RUNNING
                              seq 2 [prompt, c]                    seq 2 [prompt, c, h, i]   RUNNING

Two numbers describe how far a sequence is. `len(seq)` counts the tokens that are known: the prompt and
everything sampled. `num_computed_tokens` counts those whose K and V are in the cache. The newest sampled
token is known but not computed; its K and V are written by the step that samples the next one.

The scheduler owns status, tokens and `num_computed_tokens`; all other modules read them. The modules below
the plan never see a sequence: `SequenceGroup.scheduled` copies into the plan what they need to know of a
sequence for one step.

Paper: section 4.5 (sequence groups). vLLM V1: `vllm/v1/request.py` (one `Request`; n > 1 became n child
requests in `vllm/v1/engine/parallel_sampling.py`); v0.1: `vllm/sequence.py`.
"""

from __future__ import annotations

import hashlib
from array import array
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from minivllm.outputs import TokenLogprobs
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence


class SequenceStatus(Enum):
    """Where a sequence stands. The FINISHED statuses are final."""

    WAITING = "waiting"  # holds no block
    RUNNING = "running"  # holds blocks on the device, or will share those which its leader computes again
    SWAPPED = "swapped"  # holds blocks in CPU memory
    FINISHED_STOPPED = "stop"  # end-of-sequence token, stop token or stop string
    FINISHED_LENGTH_CAPPED = "length"  # max_tokens or max_model_len
    FINISHED_ABORTED = "abort"  # by the user

    def __init__(self, value: str) -> None:
        # Whether no more tokens will come. Not a property, because it is read several times per token.
        self.is_finished = value in ("stop", "length", "abort")

    @property
    def finish_reason(self) -> str | None:
        """vLLM's word for it: "stop", "length", "abort", or None while unfinished."""
        return self.value if self.is_finished else None


@dataclass(eq=False, repr=False)
class Sequence:
    """One token stream: prompt, sampled tokens, and how much of it is in the KV cache.

    Attributes:
        seq_id: unique in the engine; the key of its block table.
        token_ids: prompt and sampled tokens; at first the prompt, which is copied.
        seed: with the position, decides every random draw (`sampler.uniform`), so that a draw depends on
            nothing else: not on batch mates, not on preemption.
        index: its place among the n completions.
        max_num_tokens: how many tokens it may grow to; its group sets it.
        stop_reason: the stop string or stop token that ended it; None for end of sequence.
        sample_logprobs: one entry per sampled token, if the request asked for them.
        cumulative_logprob: their sum.
        num_draft_misses, draft_from: steps in a row whose drafts were all rejected, and the length from which
            it may have drafts again (`speculative/speculator.py`).
    """

    seq_id: int
    token_ids: list[int]
    seed: int
    index: int = 0
    num_computed_tokens: int = 0
    max_num_tokens: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    stop_reason: int | str | None = None
    sample_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    num_draft_misses: int = 0
    draft_from: int = 0
    _block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = list(self.token_ids)
        self.num_prompt_tokens = len(self.token_ids)

    def __len__(self) -> int:
        """Tokens known: prompt and sampled."""
        return len(self.token_ids)

    def __repr__(self) -> str:
        computed = f"{self.num_computed_tokens} of {len(self)} tokens computed"
        return f"Sequence({self.seq_id}, {self.status.name}, {computed})"

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known whose K and V are not in the cache: what a step may work on."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the sampled tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    def append(self, token_id: int, logprobs: TokenLogprobs | None = None) -> None:
        """Add one sampled token."""
        self.token_ids.append(token_id)
        if logprobs is not None:
            self.sample_logprobs.append(logprobs)
            self.cumulative_logprob += logprobs.logprob

    def cut_output(self, num_output_tokens: int) -> None:
        """Drop the sampled tokens after the first `num_output_tokens`: a stop string ended before them."""
        dropped = self.sample_logprobs[num_output_tokens:]
        self.cumulative_logprob -= sum(entry.logprob for entry in dropped)
        del self.token_ids[self.num_prompt_tokens + num_output_tokens :]
        del self.sample_logprobs[num_output_tokens:]

    def fork(self, seq_id: int, index: int, seed: int) -> Sequence:
        """A copy that goes on by itself. Its KV is shared by `KVCacheManager.fork`."""
        child = copy(self)
        child.seq_id, child.index, child.seed = seq_id, index, seed
        child.token_ids, child.sample_logprobs = list(self.token_ids), list(self.sample_logprobs)
        child._block_hashes = list(self._block_hashes)
        return child

    def block_hash(self, index: int, block_size: int) -> bytes:
        """Name of the content of full logical block `index`: a hash of its tokens *and all before them*.

        The chain matters. K and V of a token depend on every earlier token, so equal tokens after
        different beginnings have different content. Computed once per block and remembered.
        """
        while len(self._block_hashes) <= index:
            start = len(self._block_hashes) * block_size
            parent = self._block_hashes[-1] if self._block_hashes else b""
            tokens = array("q", self.token_ids[start : start + block_size])
            self._block_hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())
        return self._block_hashes[index]


@dataclass(eq=False)
class SequenceGroup:
    """One request: its prompt, what it asked for, and the sequences that came of it.

    The scheduler admits, schedules, preempts and resumes a group as a whole (paper, section 4.5).

    Attributes:
        max_num_tokens: prompt and output may grow to this (max_tokens and max_model_len decided already).
        stop_token_ids: all token ids that end a sequence: end-of-sequence (unless ignored) and the
            request's own. `eos_token_ids` are those for which `stop_reason` stays None: the tokenizer's id,
            without a tokenizer all that end a sequence by themselves.
        bad_words_token_ids: token sequences that must not appear, from `SamplingParams.bad_words`.
        num_cached_tokens: prompt tokens found in the prefix cache at first admission; None before it.
        prompt_logprobs: one entry for each prompt position from 1 on, if asked for.
        arrival_time: seconds of the engine's clock.
        priority: for the "priority" policy (`scheduling_policy.py`): the smaller, the earlier.
    """

    request_id: str
    prompt: str | None
    seqs: list[Sequence]
    params: SamplingParams | BeamSearchParams
    max_num_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    stop_token_ids: frozenset[int] = frozenset()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    num_cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    arrival_time: float = 0.0
    priority: int = 0

    def __post_init__(self) -> None:
        for seq in self.seqs:
            seq.max_num_tokens = self.max_num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt, the same for all sequences."""
        return self.seqs[0].num_prompt_tokens

    @property
    def is_beam_search(self) -> bool:
        """Whether its sequences are beams."""
        return isinstance(self.params, BeamSearchParams)

    @property
    def width(self) -> int:
        """How many sequences the prompt will fork into: n, or the beam width."""
        return self.params.beam_width if self.is_beam_search else self.params.n

    @property
    def num_candidates(self) -> int:
        """Continuations to rank: even if every stop token of every beam is among them, `width` remain."""
        return max(2, 1 + len(self.stop_token_ids)) * self.width

    @property
    def unfinished(self) -> list[Sequence]:
        """Sequences that want more tokens."""
        return [seq for seq in self.seqs if not seq.status.is_finished]

    def find(self, seq_id: int) -> Sequence:
        """The sequence of that id, which must be one of the group's."""
        (seq,) = [each for each in self.seqs if each.seq_id == seq_id]
        return seq

    def add_prompt_logprobs(self, start: int, entries: tuple[TokenLogprobs, ...]) -> None:
        """Take in the entries of a step that began at position `start`.

        A prompt computed again after a preemption reports them again; those already known are skipped.
        """
        self.prompt_logprobs.extend(entries[len(self.prompt_logprobs) - start :])

    def set_status(self, status: SequenceStatus) -> None:
        """Move all unfinished sequences to `status`: a group changes queues as a whole."""
        for seq in self.unfinished:
            seq.status = status

    @property
    def is_finished(self) -> bool:
        """Whether every sequence is done. A group that has yet to fork has an unfinished one."""
        return all(seq.status.is_finished for seq in self.seqs)

    @property
    def has_forked(self) -> bool:
        """Whether the first tokens have been sampled, so that `seqs` is complete."""
        return len(self.seqs) > 1 or self.seqs[0].num_output_tokens > 0

    @property
    def num_reserved_seqs(self) -> int:
        """Sequences this group counts as, against max_num_seqs: before the fork already all of them."""
        return self.width if self.is_beam_search or not self.has_forked else len(self.unfinished)

    # -- into the plan ------------------------------------------------------------------------------

    def scheduled(
        self, seq: Sequence, num_tokens: int, num_samples: int, block_ids: tuple[int, ...]
    ) -> ScheduledSequence:
        """The next `num_tokens` tokens of `seq` as a row of the plan: a copy of all that a runner needs."""
        params, start = self.params, seq.num_computed_tokens
        end = start + num_tokens
        wanted: dict[str, Any] = {}  # what to make of the logits
        if params.prompt_logprobs is not None:
            scored = tuple(seq.token_ids[start + 1 : min(end + 1, seq.num_prompt_tokens)])
            wanted |= {"scored_token_ids": scored, "num_prompt_logprobs": params.prompt_logprobs}
        if num_samples > 0 and self.is_beam_search:
            wanted["num_candidates"] = self.num_candidates
        elif num_samples > 0:
            looks_back = params.has_penalties or self.bad_words_token_ids
            wanted["sampling"] = SamplingMetadata(
                params, num_samples, seq.seed, len(seq), seq.num_prompt_tokens, self.stop_token_ids,
                self.bad_words_token_ids, tuple(seq.token_ids) if looks_back else (),
            )  # fmt: skip
        tokens = tuple(seq.token_ids[start:end])
        return ScheduledSequence(self.request_id, seq.seq_id, start, tokens, block_ids, **wanted)
