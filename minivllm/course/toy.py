"""The notebooks' model: a tiny random Llama that speaks in words, and the worked example laid out in memory.

Its weights are random, so its sentences are nonsense; but it is a real Llama, and what the notebooks are
about (which block, which step, how many tokens) does not depend on sense. Each of its 256 token ids is shown
as one English word, so that a picture of memory can be read::

    >>> encode("Four score and seven years ago")
    [0, 1, 2, 3, 4, 5]
    >>> trace = Trace(word_of=word)
    >>> llm = example_llm(trace=trace)           # 8 blocks of 4 slots; blocks 7 and 2 are the next free ones
    >>> output = llm.generate({"prompt_token_ids": encode("Four score and seven years ago")}, greedy(4))[0]
    >>> trace.steps[0].scheduled[0].block_ids
    (7, 2)

A model loads in about 20 ms and takes 1 to 2 ms per step, so a notebook can try everything several times.
`real_llm` is SmolLM2 instead, for pictures with words that make sense.
`WORKLOAD` is what chapters 3, 5, 6 and 7 measure with: twelve requests, most of them short, a few long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivllm.llm import LLM
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import SamplingParams
from minivllm.viz.trace import Trace
from minivllm.weights.random_model import random_llama

_WORDS = """
    Four score and seven years ago our fathers brought forth on this continent a new nation conceived in
    liberty dedicated to the proposition that all men are created equal now we engaged great civil war
    testing whether any so can long endure met battle field of have come dedicate portion as final
    resting place for those who here gave their lives might live it is altogether fitting proper should
    do but larger sense not hallow ground brave living dead struggled consecrated far above poor power
    add or detract world will little note nor remember what say never forget they did us rather be
    unfinished work which fought thus nobly advanced task before from these honored take more devotion
    cause last full measure highly resolve shall died vain under birth freedom by people perish earth
    apple bread river stone cloud green house light night water paper music train horse table chair bird
    fish moon star rain snow wind fire sand salt milk tea rice corn door wall roof road ship boat hand
    foot head heart blue red black white gold iron wood glass warm cold slow quick young old north south
    east west spring summer winter garden mountain forest valley island ocean desert bridge tower market
    school letter number story song dance game bell clock lamp candle mirror window kitchen basket
    button pocket sugar honey lemon cherry silver copper thunder shadow feather garlic pepper carpet
    hammer ladder needle pencil rabbit turtle eagle salmon tiger donkey meadow harbor village cottage
    chimney lantern violin trumpet drum flute ribbon velvet
"""
WORDS = tuple(_WORDS.split())

# (prompt tokens, output tokens). Twelve requests in order of arrival; a few long answers among short ones, as
# in real traffic. Request 0 has the prompt of the worked example.
WORKLOAD = (
    (6, 8), (11, 30), (4, 5), (9, 12), (14, 6), (5, 40), (7, 9), (12, 4), (3, 15), (8, 7), (10, 33), (5, 11)
)  # fmt: skip


def word(token_id: int) -> str:
    """The word a token id is shown as; `<s>` and `</s>` for the two special ids."""
    return (*WORDS, "<s>", "</s>")[token_id]


def encode(text: str) -> list[int]:
    """Words, separated by spaces, to token ids.

    Raises:
        ValueError: a word that is not among the 256.
    """
    unknown = sorted(set(text.split()) - set(WORDS))
    if unknown:
        raise ValueError(f"the toy vocabulary has no {', '.join(unknown)}. It has: {' '.join(WORDS)}.")
    return [WORDS.index(each) for each in text.split()]


def decode(token_ids: Sequence[int]) -> str:
    """Token ids to words."""
    return " ".join(word(token_id) for token_id in token_ids)


def greedy(max_tokens: int) -> SamplingParams:
    """Exactly `max_tokens` tokens, the likeliest each time: the same in every run and in any batch."""
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def toy_llm(**options: Any) -> LLM:
    """An `LLM` on the tiny random Llama (2 layers, 4 query and 2 KV heads of size 16).

    Args:
        options: those of `LLM`; blocks are of 4 slots and prefix caching is off unless they say otherwise.
    """
    options = {
        "block_size": 4,
        "num_blocks": 64,
        "max_model_len": 256,
        "enable_prefix_caching": False,
    } | options
    with tempfile.TemporaryDirectory() as folder:  # the weights are copied into memory
        return LLM(str(random_llama(Path(folder) / "toy", byte_tokenizer=True)), **options)


def real_llm(**options: Any) -> LLM:
    """SmolLM2, whose words make sense, in a pool small enough to look at; its trace keeps the words.

    Args:
        options: those of `LLM`; 8 blocks of 4 slots unless they say otherwise.
    """
    options = {"block_size": 4, "num_blocks": 8, "max_model_len": 32} | options
    llm = LLM("smollm2-135m-instruct", **options)
    tokenizer = llm.get_tokenizer()
    llm.llm_engine.trace = Trace(word_of=lambda token_id: tokenizer.decode([token_id]))
    return llm


def arrange_free_blocks(llm: LLM, order: Sequence[int]) -> None:
    """Put the free queue of an idle engine into this order, as if earlier requests had left it so.

    Raises:
        ValueError: a block is in use, or `order` is not a permutation of all blocks.
    """
    pool = llm.llm_engine.scheduler.kv.pool
    if sorted(order) != list(range(pool.num_blocks)) or pool.num_used:
        raise ValueError(
            f"order must name each of the {pool.num_blocks} blocks once, all of them free; got {list(order)}."
        )
    pool.allocate(pool.num_blocks)
    pool.free([pool.blocks[block_id] for block_id in order])


def example_llm(**options: Any) -> LLM:
    """The engine of the worked example: 8 blocks of 4 slots, and the next two to be taken are 7 and 2."""
    llm = toy_llm(**({"num_blocks": 8, "max_model_len": 32} | options))
    arrange_free_blocks(llm, (7, 2, 4, 1, 0, 3, 6, 5))
    return llm


def workload_prompts(lengths: Sequence[tuple[int, int]] = WORKLOAD) -> list[list[int]]:
    """Prompts of these lengths: consecutive words of the vocabulary, another piece of it for each request."""
    return [[(23 * number + i) % 256 for i in range(length)] for number, (length, _) in enumerate(lengths)]


def run_workload(
    llm: LLM, lengths: Sequence[tuple[int, int]] = WORKLOAD
) -> tuple[Trace, list[RequestOutput]]:
    """Generate for all requests, greedily and to exactly their lengths; returns the trace and the outputs."""
    llm.llm_engine.trace = trace = Trace(word_of=word)
    prompts = [{"prompt_token_ids": prompt} for prompt in workload_prompts(lengths)]
    outputs = llm.generate(prompts, [greedy(output_len) for _, output_len in lengths], use_tqdm=False)
    return trace, outputs
