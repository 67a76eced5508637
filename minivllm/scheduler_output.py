"""The plan of one step, by value: what the scheduler decided, for the runner to carry out.

The plan goes one way, from `Scheduler.schedule()` to `ModelRunner.execute_model()`. It is plain data:
numbers, strings, tuples, and no object that the scheduler goes on changing. So it can be pickled and sent to
a process or a machine that has never seen the request, and a runner cannot reach the scheduler's state even
by mistake. For the step in `scheduler.py`'s example (A generates its 8th token, B catches up with a long
prompt)::

    SchedulerOutput(step=12, scheduled=(
        ScheduledSequence("A", seq_id=0, start=6, token_ids=(88,), block_ids=(7, 2),
                          sampling=SamplingMetadata(params, num_samples=1, seed=17, position=7, ...)),
        ScheduledSequence("B", seq_id=1, start=4, token_ids=(9, 2, 41, 5, 7, 3, 60), block_ids=(5, 0, 3))))

Each row is complete: it holds all that the model and the sampler need for it. If the request has penalties or
bad words, that includes the history which these look back on, sent anew in each step. vLLM sends a request's
parameters once and then only what is new (`CachedRequestData`), so its workers keep a copy of every request,
which each fork, preemption and abort has to update. A runner without memory cannot disagree with the
scheduler. The price is bytes: a decode step of 64 sequences is some 18 KB, with penalties 3 bytes more for
each token of history.

Paper: section 4.6 (the control message, with token ids and block tables).
vLLM V1: `vllm/v1/core/sched/output.py`, `vllm/v1/sample/metadata.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.sampling_params import SamplingParams

BlockPair = tuple[int, int]
"""A block to copy: (source block id, destination block id)."""


@dataclass(frozen=True)
class SamplingMetadata:
    """How to choose the token that follows a row's last one.

    `num_samples` tokens are drawn: one, or n when a prompt for n completions is done; the k-th of them draws
    with `seed` + k. `position` is the place of the token to be chosen, which is also the number of tokens
    known. `token_ids` are these tokens, the prompt first; empty if nothing in `params` looks back. The ids
    that end the text (`stop_token_ids`) are forbidden until there are `params.min_tokens` output tokens.
    """

    params: SamplingParams
    num_samples: int
    seed: int
    position: int
    num_prompt_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    token_ids: tuple[int, ...] = ()

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled before this one."""
        return self.position - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> tuple[int, ...]:
        """The sampled part of `token_ids`."""
        return self.token_ids[self.num_prompt_tokens :]


@dataclass(frozen=True)
class ScheduledSequence:
    """One row of the batch: compute `token_ids`, which stand at positions `start`, `start` + 1, ...

    `block_ids` is the block table of this step. What is wanted of the logits:

    - `sampling`: tokens that follow the row's last one; None for beams, and while the sequence catches up;
    - `num_candidates`: for a beam that has caught up, how many of its likeliest next tokens; else 0;
    - `scored_token_ids`: prompt tokens whose log-probabilities are wanted; the i-th follows the row's i-th.

    `draft_token_ids` are guesses at the tokens that follow (`minivllm/speculative/`). They are computed as
    well, and `block_ids` has room for `num_drafts` of them; a draft model fills them in only in the step.
    """

    request_id: str
    seq_id: int
    start: int
    token_ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    sampling: SamplingMetadata | None = None
    num_candidates: int = 0
    scored_token_ids: tuple[int, ...] = ()
    num_prompt_logprobs: int = 0
    draft_token_ids: tuple[int, ...] = ()
    num_drafts: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens this row computes, drafts included."""
        return len(self.token_ids) + self.num_drafts

    @property
    def num_samples(self) -> int:
        """Tokens sampled from this row: 0 while the sequence is catching up; a beam counts as 1."""
        if self.sampling is not None:
            return self.sampling.num_samples
        return int(self.num_candidates > 0)


@dataclass(frozen=True)
class SchedulerOutput:
    """The plan of one step. The three lists of block pairs apply in the order they stand here."""

    step: int
    scheduled: tuple[ScheduledSequence, ...]
    blocks_to_swap_out: tuple[BlockPair, ...] = ()  # (device block, CPU block)
    blocks_to_swap_in: tuple[BlockPair, ...] = ()  # (CPU block, device block)
    blocks_to_copy: tuple[BlockPair, ...] = ()  # (shared block, new block): copy-on-write
    preempted: tuple[str, ...] = ()  # request ids

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens this step computes."""
        return sum(row.num_tokens for row in self.scheduled)


@dataclass
class StepDraft:
    """The plan while the scheduler makes it, and what is left to give out. See `SchedulerOutput`."""

    budget: int  # tokens
    seats: int = 0  # sequences that may still join those running
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    swap_out: list[BlockPair] = field(default_factory=list)
    swap_in: list[BlockPair] = field(default_factory=list)
    copies: list[BlockPair] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)

    def finish(self, step: int) -> SchedulerOutput:
        """The finished plan: from here on it is only read."""
        lists = self.scheduled, self.swap_out, self.swap_in, self.copies, self.preempted
        return SchedulerOutput(step, *map(tuple, lists))
