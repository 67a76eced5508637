"""Tensor parallelism on GPUs, computed: the time of a step on 1 to 8 of them, and where it stops paying.

A step reads every weight once and multiplies it with one row per sequence; p GPUs do a p-th each. What they
do not share is the talking: 2 sums per layer and one for the embedding, one after the other, and they get
slower with p::

    step(p) = products(1) / p  +  (2 L + 1) all_reduce(p)  +  gather(p)

    products(1) = max(bytes / memory bandwidth, operations / peak)           the roofline; weights and KV
    all_reduce(p) = base + 2 (p - 1) hop + 2 (p - 1) / p * message / link    a ring: alpha-beta model

Example, Llama-3.1-8B in bfloat16, one sequence with 1,024 tokens of past, H100: 15.1 GB / 3,350 GB/s = 4.5 ms
on one GPU. On 8 GPUs the products take 0.57 ms, and 65 sums of 8 KB at 15 us each take 0.98 ms. The message
is so short that the speed of the link does not matter: nearly all of it is latency.

Not in it: kernel launches, the scheduler, attention's arithmetic, sums that overlap with products or use the
switch (NVLS) or shared memory directly (vLLM's custom all-reduce), which are 2 to 3 times as fast for short
messages.

Sources: NVIDIA's data sheets of A100 80GB SXM and H100 SXM (bandwidth, dense bfloat16 peak; NVLink 600 and
900 GB/s count both directions, so half of it is used here); the latencies are those by which NCCL chooses its
own algorithm (`src/graph/tuning.cc`, ring over NVLink: LL 6.6 us + 0.6 us per step at half the bandwidth,
Simple 8.4 us + 3.4 us). The ring: Patarasuk and Yuan, 2009. The roofline: Williams et al., 2009.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from minivllm.aot.chips import CHIPS
from minivllm.config import ModelConfig
from minivllm.weights.random_model import SHAPES

BF16 = 2  # bytes


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says: bytes/s, operations/s, bytes/s of all links one way, bytes of memory."""

    memory_bandwidth: float
    peak: float
    link: float
    memory: float = 80e9


GPUS = {
    "A100": Gpu(memory_bandwidth=CHIPS[80].gb_per_second * 1e9, peak=312e12, link=300e9),
    "H100": Gpu(memory_bandwidth=CHIPS[90].gb_per_second * 1e9, peak=989e12, link=450e9),
}
# (base, per step) in seconds, and the share of the link's bandwidth: NCCL takes the faster one.
PROTOCOLS = {"LL": (6.6e-6, 0.6e-6, 0.5), "Simple": (8.4e-6, 3.4e-6, 1.0)}


def _config(shape: dict[str, Any]) -> ModelConfig:
    """What costs time: the sizes. How positions are scaled and how weights are stored changes none."""
    sizes = {name: value for name, value in shape.items() if name not in ("rope_theta", "torch_dtype")}
    return ModelConfig(**sizes)


_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MODELS = {
    "Llama-3.2-1B": _config(SHAPES["llama-3.2-1b"]),
    "Llama-3.1-8B": _config(SHAPES["llama-3.1-8b"]),
    "Llama-3.1-70B": _config(SHAPES["llama-3.1-8b"] | _70B),
}
SIZES = (1, 2, 4, 8)


def matrix_elements(config: ModelConfig) -> int:
    """Numbers in all matrices that a step multiplies with: the layers' and the head's.

    Example: SmolLM2-135M -> 134,479,872: 30 layers of 3,538,944 and a head of 28,311,552. (Its norms hold
    35,136.)
    """
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    return config.num_hidden_layers * layer + config.vocab_size * config.hidden_size


def all_reduce_seconds(nbytes: float, size: int, link: float) -> float:
    """Seconds of one sum of `nbytes` over `size` GPUs by a ring, with the faster protocol; 0 for one GPU."""
    if size == 1:
        return 0.0
    steps, on_wire = 2 * (size - 1), 2 * (size - 1) / size * nbytes
    return min(base + steps * hop + on_wire / (share * link) for base, hop, share in PROTOCOLS.values())


def gather_seconds(nbytes: float, size: int, link: float) -> float:
    """Seconds until each GPU has all `nbytes`, of which it began with 1 / `size`: half a ring."""
    if size == 1:
        return 0.0
    steps, on_wire = size - 1, (size - 1) / size * nbytes
    return min(base + steps * hop + on_wire / (share * link) for base, hop, share in PROTOCOLS.values())


@dataclass(frozen=True)
class StepTime:
    """One decode step, in seconds. `fits`: weights and KV are below 90% of the memory of each GPU."""

    products: float
    communication: float
    fits: bool

    @property
    def total(self) -> float:
        """Products and communication do not overlap."""
        return self.products + self.communication


def step_time(config: ModelConfig, gpu: Gpu, size: int, num_seqs: int, seq_len: int) -> StepTime:
    """A decode step of `num_seqs` sequences with `seq_len` tokens each, in bfloat16, on `size` GPUs."""
    elements = matrix_elements(config)
    nbytes = BF16 * elements + num_seqs * seq_len * config.kv_bytes_per_token(BF16)
    products = max(nbytes / gpu.memory_bandwidth, 2 * elements * num_seqs / gpu.peak) / size
    num_sums, message = 2 * config.num_hidden_layers + 1, num_seqs * config.hidden_size * BF16
    sums = num_sums * all_reduce_seconds(message, size, gpu.link)
    logits = gather_seconds(num_seqs * config.vocab_size * BF16, size, gpu.link)
    # An untied embedding is not multiplied with, but it is held.
    held = nbytes + (not config.tie_word_embeddings) * BF16 * config.vocab_size * config.hidden_size
    return StepTime(products, sums + logits, held / size < 0.9 * gpu.memory)


def where_it_stops(times: dict[int, StepTime], gain: float = 1.1) -> int | None:
    """The first size which is not `gain` times as fast as the one before; None if all are."""
    sizes = list(times)
    for before, size in pairwise(sizes):
        if times[before].total < gain * times[size].total:
            return size
    return None


def plan_rows(num_seqs: tuple[int, ...] = (1, 32, 256), seq_len: int = 1024) -> list[dict[str, Any]]:
    """All models, GPUs and batch sizes: milliseconds per step by number of GPUs, ready for JSON."""
    rows = []
    for (model, config), (name, gpu) in [(m, g) for m in MODELS.items() for g in GPUS.items()]:
        for batch in num_seqs:
            times = {size: step_time(config, gpu, size, batch, seq_len) for size in SIZES}
            cells = [
                asdict(time) | {"size": size, "total": time.total, "share": time.communication / time.total}
                for size, time in times.items()
            ]
            row = {"model": model, "gpu": name, "num_seqs": batch, "seq_len": seq_len, "sizes": cells}
            rows.append(row | {"stops_at": where_it_stops(times)})
    return rows
