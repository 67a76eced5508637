"""Drafts by a smaller model, made in the same step in which they are verified.

The draft model is a model like the other: it has a runner, and a KV cache with the same number of blocks of
the same size. Both caches use the same block tables: block 7 has a place in each, so a block costs the
bytes of both. All that happens to blocks (sharing, copies, swaps, prefix hits, preemption) then holds for
both, and nothing has to be kept in step. The invariant holds for both caches too: [0, num_computed_tokens)
is in each.

A step with k = 3 drafts for a sequence whose last known token is t, at position 9::

    draft model    pass 0   everything in the plan (prompts too)    t -> a        one row of the plan each
                   pass 1                           position 10     a -> b
                   pass 2                           position 11     b -> c
                   pass 3                           position 12     c             only writes K and V
    model          1 step                      positions 9 to 12    t a b c -> verified

Pass 3 looks superfluous. Without it, if all three drafts are accepted, c is in the model's cache and not in
the draft model's: a hole which no later step fills, and from then on worse drafts, though never a wrong
token.

The draft model samples as the model does: same parameters, same seed, same position, hence the same u.
Where the two distributions are alike, the two draws mostly are. With temperature 0 both take the likeliest
token.

vLLM V1: `vllm/v1/spec_decode/draft_model.py`, which drafts after a step for the next one.
"""

from __future__ import annotations

from dataclasses import replace

from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.config import EngineConfig
from minivllm.kv_cache import KVCache
from minivllm.model import Model
from minivllm.model_runner import ModelRunner
from minivllm.sampler import Sampler
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput
from minivllm.speculative.config import SpeculativeConfig
from minivllm.speculative.verification import sampling_after
from minivllm.weights.loader import load_model, load_model_config, resolve_model


class DraftModel:
    """Fills in the drafts of plans.

    Args:
        model: the draft model, with its weights.
        target_cache: the KV cache of the model it drafts for; the draft model gets as many blocks.
    """

    def __init__(self, model: Model, target_cache: KVCache) -> None:
        first = target_cache.key[0]  # (B, S, Hkv, D)
        sizes = target_cache.num_blocks, target_cache.block_size, first.dtype, first.device
        self.model, self.kv_cache = model, KVCache(model.config, *sizes, target_cache.num_cpu_blocks)
        self.runner = ModelRunner(model, self.kv_cache, Sampler())

    def fill_in(self, plan: SchedulerOutput) -> SchedulerOutput:
        """The plan with `draft_token_ids` in each row that has room for drafts.

        Whatever the plan computes and moves, the draft model computes and moves as well.
        """
        rows = plan.scheduled
        outputs = self.runner.execute_model(replace(plan, scheduled=tuple(map(without_drafts, rows))))
        drafts = {i: output.token_ids[0] for i, output in enumerate(outputs) if output.token_ids}
        for number in range(1, max((row.num_drafts for row in rows), default=0) + 1):
            which = [i for i in drafts if rows[i].num_drafts >= number]
            one_token_each = tuple(row_of_newest(rows[i], drafts[i]) for i in which)
            outputs = self.runner.execute_model(SchedulerOutput(plan.step, one_token_each))
            for i, output in zip(which, outputs, strict=True):
                drafts[i] += output.token_ids[0] if output.token_ids else ()
        filled = (replace(row, draft_token_ids=drafts.get(i, ())) for i, row in enumerate(rows))
        return replace(plan, scheduled=tuple(filled))


def without_drafts(row: ScheduledSequence) -> ScheduledSequence:
    """The row as the draft model computes it first: sampled from if it may have drafts, and nothing else."""
    sampling = row.sampling if row.num_drafts > 0 else None
    return replace(
        row, num_drafts=0, sampling=sampling, num_candidates=0, scored_token_ids=(), num_prompt_logprobs=0
    )


def row_of_newest(row: ScheduledSequence, drafts: tuple[int, ...]) -> ScheduledSequence:
    """The row that computes the last of the drafts made so far, and samples the next one if one is wanted."""
    sampling = sampling_after(row.sampling, drafts) if len(drafts) < row.num_drafts else None
    start = row.start + len(row.token_ids) + len(drafts) - 1
    return replace(without_drafts(row), start=start, token_ids=drafts[-1:], sampling=sampling)


def load_draft_model(
    speculation: SpeculativeConfig | None, engine: EngineConfig, target: Model, max_model_len: int
) -> Model | None:
    """The draft model with its weights, on the device and in the dtype of `target`; None if there is none.

    Raises:
        ValueError: it has another vocabulary, or no angles for the longest sequence.
    """
    if speculation is None or speculation.model is None:
        return None
    folder = resolve_model(speculation.model)
    config, weight = load_model_config(folder), next(target.parameters())
    vocab_size = load_model_config(resolve_model(engine.model)).vocab_size
    if config.vocab_size != vocab_size:
        raise ValueError(
            f"the draft model {speculation.model} has a vocabulary of {config.vocab_size} tokens and the "
            f"model one of {vocab_size}: ids would mean different words. Use a smaller model "
            "of the same family."
        )
    if config.max_position_embeddings < max_model_len:
        raise ValueError(
            f"the draft model {speculation.model} reaches {config.max_position_embeddings} tokens, "
            f"max_model_len is {max_model_len}. Set max_model_len to at most the former."
        )
    attention = make_attention_backend(
        engine.attention_backend, config, engine.block_size, weight.dtype, weight.device
    )
    return load_model(folder, attention, weight.dtype, weight.device)
