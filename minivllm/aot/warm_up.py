"""The variants of the kernels compiled before the first request, on the GPU that is there.

Triton compiles a kernel when it is first called with some combination of tile sizes, splits and lanes. That
takes seconds, and a request that is the first to need one waits for it, with all that run beside it. Which
combinations there are follows from the limits of the engine. So each is run once, on padding: slots of -1,
which nothing is written to, so that no KV is touched::

    prefill    R sequences of mean length m        tiles differ for m <= 4, m < 256, m >= 256
                                                   lanes for R <= 64, <= 128, <= 256, ...
    decode     R sequences, a table of W blocks    1, 2, 4, .. 32 splits, by R and W
    or, where steps are replayed                   one recording for each batch size

    from minivllm.aot.warm_up import warm_up
    warm_up(llm.llm_engine)                        some tens of seconds; then requests compile nothing,
                                                   with two exceptions

The exceptions: the kernels of a draft model, whose sizes are others, are compiled by the first requests; and
where steps are replayed, decode steps of more sequences than are recorded (256) may need a number of splits
which no recording has. With drafts, or with so many sequences, send a few requests first.

It is not done by itself, because a study of ten lines would wait for kernels it never uses. vLLM V1:
`compile_or_warm_up_model` in `vllm/v1/worker/gpu_worker.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from minivllm.attention import AttentionMetadata
from minivllm.backends.cuda_graphs import DecodeGraphs
from minivllm.block_table import cdiv
from minivllm.engine import LLMEngine

FEWEST_LANES = 64


@torch.inference_mode()
def warm_up(engine: LLMEngine) -> int:
    """Run a step of padding for every variant that the model of `engine` may meet; -> how many.

    Nothing happens with another attention backend than `triton`: the others compile nothing in a step. It may
    be called before the first request or between any two steps.
    """
    if engine.attention.name != "triton":
        return 0
    config, runner, number = engine.config, engine.runner, 0
    steps = list(prefill_steps(config.max_num_seqs, config.max_num_batched_tokens, config.block_size))
    if isinstance(runner.decode_steps, DecodeGraphs):
        number = runner.decode_steps.record_all()
    else:
        steps += decode_steps(config.max_num_seqs, cdiv(engine.max_model_len, config.block_size))
    for num_seqs, num_tokens, width in steps:
        metadata = padding(num_seqs, num_tokens, width, engine.device)
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=engine.device)
        hidden = runner.model(ids, ids, runner.kv_cache, metadata)
        runner.model.compute_logits(hidden[-1:])
    return number + len(steps)


def prefill_steps(
    max_num_seqs: int, max_num_batched_tokens: int, block_size: int
) -> Iterator[tuple[int, int, int]]:
    """(sequences, tokens, blocks in the table) of every kind of prefill step within the limits.

    Example: 64 sequences, 2,048 tokens and blocks of 16 give (1, 2, 1), (1, 5, 1) and (1, 256, 16).
    """
    num_seqs = 1
    while num_seqs <= max_num_seqs:
        # The fewest tokens for each choice of `prefill_tiles` (`kernels/heuristics.py`): it goes by the mean.
        for num_tokens in (num_seqs + 1, 4 * num_seqs + 1, 256 * num_seqs):
            if num_tokens <= max_num_batched_tokens:
                yield num_seqs, num_tokens, cdiv(num_tokens - num_seqs + 1, block_size)
        num_seqs = max(FEWEST_LANES, 2 * (num_seqs - 1)) + 1  # 1, 65, 129, 257, ...


def decode_steps(max_num_seqs: int, max_width: int) -> Iterator[tuple[int, int, int]]:
    """The same for decode: the number of splits follows the number of sequences and the table's width."""
    for num_seqs in powers_of_two(max_num_seqs):
        for width in powers_of_two(max_width):
            yield num_seqs, num_seqs, width


def powers_of_two(most: int) -> list[int]:
    """powers_of_two(20) == [1, 2, 4, 8, 16, 20]: the last is `most` itself."""
    return sorted({most, *(1 << exponent for exponent in range(most.bit_length()))})


def padding(num_seqs: int, num_tokens: int, width: int, device: torch.device) -> AttentionMetadata:
    """A step that writes nothing: every slot is -1. It reads block 0, and what it computes is of no use.

    The first sequence gets all tokens but one for each of the others. padding(3, 5, 1, "cpu") has
    query_start_loc [0, 3, 4, 5] and seq_lens [3, 1, 1].
    """
    longest = num_tokens - num_seqs + 1
    seq_lens = torch.tensor([longest] + [1] * (num_seqs - 1), dtype=torch.int32, device=device)
    return AttentionMetadata(
        slot_mapping=torch.full((num_tokens,), -1, dtype=torch.int64, device=device),
        block_tables=torch.zeros(num_seqs, width, dtype=torch.int32, device=device),
        seq_lens=seq_lens,
        query_start_loc=torch.nn.functional.pad(seq_lens.cumsum(0, dtype=torch.int32), (1, 0)),
        max_query_len=longest,
        max_seq_len=longest,
    )
