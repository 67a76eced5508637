"""The fixed benchmark of the leaderboard: a student's engine beside minivllm, on one Llama in one memory.

All 24 requests begin with the same 32 tokens (a system prompt, say), then differ. Both engines get the same
weights, the same requests and memory for 640 tokens. That is room for 6 requests if each reserves for the
longest sequence, for about 10 if each takes blocks as it grows, and for all 16 seats if blocks are shared::

    round 0    student, then minivllm     not timed: whether the texts agree, positions computed, slots in use
    round 1    student  minivllm          other prompts in every round, the same for both
    round 2    student  minivllm
    round 3    student  minivllm          the ratio of each round, and their median

The Llama has random weights: for time only their size matters, and nothing has to be downloaded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivllm.bench.report import Spread, in_turns, paired_ratio, provenance, why_no_ratio
from minivllm.course.project.model import Limits, Model, Row

NUM_SLOTS = 640
LIMITS = Limits(max_model_len=96, max_num_seqs=16, block_size=16, max_num_batched_tokens=256)
NUM_REQUESTS, NUM_COMMON, NUM_ROUNDS = 24, 32, 3
# 20 million weights, 80 MB: more than the caches of a core hold, so a call reads them from memory each time.
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
Generate = Callable[[list[list[int]], list[int]], list[list[int]]]


class CountingModel:
    """A model that notes what passes through it.

    Attributes:
        num_calls: calls so far.
        num_positions: tokens computed in them.
        most_slots: different slots in the rows of one call, of the call with the most.
    """

    def __init__(self, model: Model) -> None:
        self.num_slots = model.num_slots
        self.num_calls = self.num_positions = self.most_slots = 0
        self._model = model

    def forward(self, rows: list[Row]) -> list[int]:
        """See `Model.forward`."""
        self.num_calls += 1
        self.num_positions += sum(len(row.token_ids) for row in rows)
        self.most_slots = max(self.most_slots, len({slot for row in rows for slot in row.slots}))
        return self._model.forward(rows)


def requests_of(number: int) -> tuple[list[list[int]], list[int]]:
    """Prompts and lengths of answers of one round: the same lengths in all rounds, other tokens in each."""
    lengths, tokens = random.Random(0), random.Random(number)

    def draw(count: int) -> list[int]:
        return [tokens.randrange(SHAPE["vocab_size"] - 2) for _ in range(count)]

    common = draw(NUM_COMMON)
    prompts = [common + draw(lengths.randint(4, 28)) for _ in range(NUM_REQUESTS)]
    return prompts, [lengths.randint(8, 32) for _ in prompts]


def reference(folder: Path, attention_backend: str) -> Generate:
    """minivllm itself, on the same weights, memory and limits; each round begins with nothing cached."""
    from minivllm import LLM, SamplingParams

    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        attention_backend=attention_backend,
        num_blocks=NUM_SLOTS // LIMITS.block_size,
        block_size=LIMITS.block_size,
        max_model_len=LIMITS.max_model_len,
        max_num_seqs=LIMITS.max_num_seqs,
        max_num_batched_tokens=LIMITS.max_num_batched_tokens,
    )

    def generate(prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        llm.reset_prefix_cache()
        params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in max_tokens]
        outputs = llm.generate([{"prompt_token_ids": each} for each in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


def student(engine_class: Callable[[Model, Limits], Any], model: Model) -> Generate:
    """A new engine of the student's for every round, so that it begins with nothing cached."""

    def generate(prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        return engine_class(model, LIMITS).generate([list(each) for each in prompts], list(max_tokens))

    return generate


def rate(generate: Generate, rounds: list[int]) -> float:
    """Output tokens per second in the next round; takes its number from `rounds`."""
    prompts, max_tokens = requests_of(rounds.pop(0))
    start = time.perf_counter()
    generate(prompts, max_tokens)
    return sum(max_tokens) / (time.perf_counter() - start)


def run_benchmark(
    engine_class: Callable[[Model, Limits], Any], folder: Path, attention_backend: str = "auto"
) -> dict[str, Any]:
    """One entry of the leaderboard, ready for JSON.

    Args:
        engine_class: the student's `Engine`.
        folder: weights of the shape `SHAPE`.
        attention_backend: of both sides.

    Raises:
        ValueError: a text is not as long as asked for, or more than one text in ten differs from minivllm's.
    """
    from minivllm.course.project.llama_model import LlamaModel

    where = provenance()  # the load is that of the start
    model, ours = LlamaModel(folder, NUM_SLOTS, attention_backend), reference(folder, attention_backend)
    counting = CountingModel(model)
    prompts, max_tokens = requests_of(0)
    got, expected = student(engine_class, counting)(prompts, max_tokens), ours(prompts, max_tokens)
    if [len(text) for text in got] != max_tokens:
        raise ValueError("the texts are not as long as asked for; are the tests of your milestone green?")
    # Batches of other shapes are summed up in another order, and now and then two tokens are all but equal.
    different = sum(list(text) != other for text, other in zip(got, expected, strict=True))
    if different > NUM_REQUESTS // 10:
        raise ValueError(f"{different} of {NUM_REQUESTS} texts differ from those of minivllm.")
    numbers = {name: list(range(1, NUM_ROUNDS + 1)) for name in ("student", "minivllm")}
    runs = {"student": student(engine_class, model), "minivllm": ours}
    rates = in_turns({name: lambda name=name: rate(runs[name], numbers[name]) for name in runs}, NUM_ROUNDS)
    spreads = {name: Spread(tuple(values)) for name, values in rates.items()}
    return {
        "machine": f"{where['cpu']}, {where['threads']} thread(s)",
        "date": where["date"],
        "tokens_per_second": {name: spread.as_json() for name, spread in spreads.items()},
        "ratio": paired_ratio(spreads["student"], spreads["minivllm"]).as_json(),
        "doubt": why_no_ratio(where, spreads),
        "calls": counting.num_calls,
        "positions": counting.num_positions,
        "most_slots": counting.most_slots,
    }
