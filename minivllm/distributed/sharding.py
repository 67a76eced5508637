"""What a rank holds: its part of the model, which is a smaller model.

Tensor parallelism cuts every layer, not the stack of layers, so all ranks work on every token at the same
time. Attention heads do not know of each other, and neither do the inner columns of an MLP: each rank takes
some of them. A matrix which *makes* heads (q, k, v, gate, up) is cut by rows, so that a rank makes its own
heads; one which *reads* them (o, down) is cut by columns, so that a rank reads its own. SmolLM2-135M on three
ranks::

                 q_proj (576, 576)      o_proj (576, 576)      gate_proj (1536, 576)
    rank 0       rows   0..191          columns   0..191       rows    0..511       heads 0, 1, 2; KV head 0
    rank 1       rows 192..383          columns 192..383       rows  512..1023      heads 3, 4, 5; KV head 1
    rank 2       rows 384..575          columns 384..575       rows 1024..1535      heads 6, 7, 8; KV head 2

What is left on a rank is a Llama with 3 query heads, 1 KV head, an MLP of 512 and a vocabulary of 16,384,
which still speaks in vectors of 576: `Shard.config` says just that, and nearly all of the engine needs no
more. Its KV cache has one head, so it takes a third of the memory; a block id means the same block on every
rank, because the blocks are cut along the heads and not along the tokens.

Each weight is cut before it is fused with others. Of a fused [gate; up] the first third of the rows would be
two thirds of gate and nothing of up.

Paper: section 4.6; Megatron-LM (arXiv 1909.08053), section 3.
vLLM V1: `weight_loader` of each class in `model_executor/layers/linear.py` and `vocab_parallel_embedding.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minivllm.config import ModelConfig

DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
"""Sizes of the config of which each rank has its share. The others are the same on every rank."""

# The dimension of Hugging Face's (out, in) weight along which it is cut. The biases of those cut by rows are
# cut as well; what is not in the table (norms, the biases of o_proj and down_proj) is whole on every rank.
SPLIT_DIMENSION = {
    "q_proj.weight": 0, "k_proj.weight": 0, "v_proj.weight": 0, "gate_proj.weight": 0, "up_proj.weight": 0,
    "q_proj.bias": 0, "k_proj.bias": 0, "v_proj.bias": 0, "gate_proj.bias": 0, "up_proj.bias": 0,
    "o_proj.weight": 1, "down_proj.weight": 1,
    "embed_tokens.weight": 0, "lm_head.weight": 0,
}  # fmt: skip


def possible_sizes(config: ModelConfig) -> list[int]:
    """The numbers of ranks which divide the model; 1 is always among them.

    Example: SmolLM2-135M with 9 query and 3 KV heads -> [1, 3].
    """
    limit = min(getattr(config, name) for name in DIVIDED)
    return [n for n in range(1, limit + 1) if all(getattr(config, name) % n == 0 for name in DIVIDED)]


@dataclass(frozen=True)
class Shard:
    """The part of a model that rank `rank` of `size` holds."""

    rank: int = 0
    size: int = 1

    def config(self, config: ModelConfig) -> ModelConfig:
        """The config of the part, which is that of a smaller model; with `size` 1, `config` itself.

        Raises:
            ValueError: the model cannot be divided by `size`; the text lists the sizes that can.
        """
        if self.size == 1:
            return config
        if self.size not in possible_sizes(config):
            sizes = ", ".join(f"{name} = {getattr(config, name)}" for name in DIVIDED)
            raise ValueError(
                f"tensor_parallel_size={self.size} does not divide this model ({sizes}). "
                f"Sizes which do: {', '.join(map(str, possible_sizes(config)))}."
            )
        return replace(config, **{name: getattr(config, name) // self.size for name in DIVIDED})

    def part_of(self, name: str, shape: Sequence[int]) -> tuple[slice, ...] | None:
        """Which part of a weight the rank reads, as an index; None: all of it.

        Args:
            name: Hugging Face's, as `model.layers.0.self_attn.o_proj.weight`.
            shape: of the whole weight. One which `size` does not divide is read whole: it does not fit the
                config, and `load_weights` says so.
        """
        dimension = SPLIT_DIMENSION.get(".".join(name.split(".")[-2:]))
        if self.size == 1 or dimension is None or shape[dimension] % self.size:
            return None
        length = shape[dimension] // self.size
        rows = slice(self.rank * length, (self.rank + 1) * length)
        return (slice(None),) * dimension + (rows,)


WHOLE = Shard()
"""All of the model: one worker."""
