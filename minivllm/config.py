"""Settings: what the engine was told (`EngineConfig`) and what the model is (`ModelConfig`).

Both are frozen. For a different setting make a new config with `dataclasses.replace`: a config that a part of
the engine has already read does not change. An unknown key is an error and is not ignored: a typo that
silently does nothing costs more time than most bugs.

Worked example, SmolLM2-135M in float32::

    >>> config = ModelConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536,
    ...                      num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    ...                      head_dim=64)
    >>> config.kv_bytes_per_token(bytes_per_element=4)    # 2 (K and V) * 30 * 3 * 64 * 4
    46080

So one block of 16 tokens is 720 KiB, and one GiB of KV cache holds 1,456 blocks.

Paper: section 3 (the same arithmetic for OPT-13B gives 800 KB per token).
vLLM V1: `vllm/config/` (one file for each of about twenty configs).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

# The words that a setting may be. Here and not where each is used, so that a typo is found before a model is
# loaded, and so that the command line can offer the same words without importing torch.
ROPE_TYPES = ("default", "linear", "llama3")
CHOICES = {
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "device": ("auto", "cpu", "cuda"),
    "preemption_mode": ("recompute", "swap"),
    "scheduling_policy": ("fcfs", "priority"),
    "attention_backend": ("auto", "torch", "numba", "triton"),
    "distributed_executor_backend": ("uni", "mp"),
}
# The ranges of `check_fields`, where an int is not from 1 and a float not up to 1e30 (float32 ends at 3e38).
AT_LEAST = {"seed": 0, "swap_space_bytes": 0, "max_logprobs": -1, "node_rank": 0, "watermark": 0}
AT_MOST = {"gpu_memory_utilization": 1, "watermark": 1}


def require_int(name: str, value: object, minimum: int) -> None:
    """Raise TypeError unless `value` is an int (bool does not count), ValueError if below `minimum`.

    A bool is an int in Python: `block_size=True` would be blocks of one token.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is of type {type(value).__name__}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def require_number(name: str, value: object) -> float:
    """Return `value` if it is an int or a float (bool does not count, NaN does); TypeError otherwise.

    The value is returned so that its range can be tested in the same line: `0 < require_number(...) <= 1`, a
    comparison that NaN fails.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, but is of type {type(value).__name__}.")
    return value


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def few(names: Collection[str]) -> str:
    """The names for an error message: four at most, and how many more there are; "none" if there are none."""
    shown = ", ".join(sorted(names)[:4]) or "none"
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def check_fields(config: RopeConfig | ModelConfig | EngineConfig) -> None:
    """Check the type and the range of each field of a config by what the field is annotated as.

    ============  ======================================================================
    `int`         an int but not a bool, from `AT_LEAST` (1) on
    `float`       a number above 0 (or 0, see `AT_LEAST`), up to `AT_MOST` (1e30); no NaN
    `bool`        True or False; not 1, not "False"
    `str`         one of `CHOICES` where the field has an entry, else not empty
    `dict`        a dict, whose keys are left to what reads it
    `... | None`  None as well
    ============  ======================================================================

    Fields with other annotations are left to the class. A new field of these types needs no line of its own.
    """
    for field in fields(config):
        name, value, kind = field.name, getattr(config, field.name), str(field.type)
        if value is None and kind.endswith("| None"):
            continue
        if name in CHOICES:
            require_choice(name, value, CHOICES[name])
        elif kind.startswith("int"):
            require_int(name, value, AT_LEAST.get(name, 1))
        elif kind == "bool" and not isinstance(value, bool):  # the string "False" is true in Python
            raise TypeError(f"{name} must be True or False, got {value!r}.")
        elif kind.startswith("str") and not (value and isinstance(value, str)):
            raise TypeError(f"{name} must be a name or a path, got {value!r}.")
        elif kind.startswith("dict") and not isinstance(value, dict):
            raise TypeError(f"{name} must be a dict, but is of type {type(value).__name__}.")
        elif kind == "float" and not (
            require_number(name, value) == AT_LEAST.get(name) or 0 < value <= AT_MOST.get(name, 1e30)
        ):
            raise ValueError(f"{name} must be in (0, {AT_MOST.get(name, 1e30)}], got {value}.")


@dataclass(frozen=True)
class RopeConfig:
    """How positions become rotation angles (see `layers.RotaryEmbedding`).

    `rope_type` is one of `ROPE_TYPES`. `linear` divides every position by `factor`. `llama3` divides
    only the low frequencies, those whose wavelength exceeds the length the model was first trained on.

    Both stretch a model's reach. With `linear` and `factor` 2, position 4,000 has the angles that position
    2,000 had in training, and neighbours differ by half as much. `llama3` spares the high frequencies, by
    which the model tells neighbours apart. `factor` is read for both types, the fields after it for `llama3`
    only.
    """

    rope_theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(
                f"rope scaling type {self.rope_type!r} is not supported "
                f"(supported: {', '.join(ROPE_TYPES)}). Running it as another type would give wrong text."
            )
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                "high_freq_factor must be above low_freq_factor: llama3 divides by the difference."
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one Llama, or of a relative. Field names are those of Hugging Face's `config.json`.

    `head_dim` is a field of its own because it need not be `hidden_size / num_attention_heads`.
    `eos_token_ids` is a tuple because a model may have several (Llama 3 has three).

    The sizes have no defaults: with a guessed size the weights would not fit, or worse, would fit a wrong
    model (half the heads, each twice as wide). `weights.hf_config.load_model_config` reads the sizes from the
    model's `config.json`. `architecture` is an entry of `weights.registry.MODELS`.

    Raises:
        ValueError, TypeError: a value outside the range of `check_fields`, or at odds with another one.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    # Four that differ between checkpoints of one family, or between relatives. `attention_bias` is that of
    # all four projections of attention; `qkv_bias` that of Q, K and V alone.
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    # The tokens that end a generation. The token that begins a prompt is the tokenizer's business.
    eos_token_ids: tuple[int, ...] = ()
    architecture: str = "LlamaForCausalLM"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): each KV head serves whole query heads."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (RoPE rotates pairs), got {self.head_dim}.")

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that share one KV head (grouped-query attention); 1 is plain multi-head."""
        return self.num_attention_heads // self.num_key_value_heads

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Bytes of KV cache that one token takes in all layers: K and V, every KV head.

        Example (OPT-13B, the paper's): 2 * 40 layers * 40 heads * 128 * 2 bytes = 819,200 bytes.
        """
        per_layer = 2 * self.num_key_value_heads * self.head_dim
        return per_layer * self.num_hidden_layers * bytes_per_element


@dataclass(frozen=True)
class EngineConfig:
    """Everything a user may set about the engine.

    Names are vLLM's where it has them (`num_blocks` is its `num_gpu_blocks_override`), and most defaults too.
    `max_num_seqs` (vLLM: 128 and more, by the device) and `gpu_memory_utilization` (0.92) suit smaller
    machines. `max_logprobs=-1` is "as many as the vocabulary has", as there.

    Sizes count tokens or blocks unless the name says bytes. `None` means "derive it": `max_model_len`
    from the model, `num_blocks` from the memory at hand (see `metrics.memory.derive_num_blocks`).
    """

    # What to run, and where.
    model: str
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    device: str = "auto"
    # Requests without a seed of their own draw theirs from this one, so a run can be repeated.
    seed: int = 0
    # A longer limit than the model was trained for would give nonsense, so it can only be lowered.
    max_model_len: int | None = None

    # Memory. Larger blocks waste more at the end of each sequence (half a block on average), smaller ones
    # make longer block tables; the paper settles on 16 (section 7.2).
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_memory_bytes: int | None = None
    # The rest of the GPU is for what torch allocates outside the measured step, and for other programs.
    gpu_memory_utilization: float = 0.9
    # CPU memory for the blocks of preempted groups. Recompute, the default, needs none.
    swap_space_bytes: int = 0

    # Scheduling. More sequences share each read of the weights, but each needs blocks; a larger budget
    # computes prompts in fewer steps, but those already generating wait longer for their next token.
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    preemption_mode: str = "recompute"
    # Share of the blocks which a newcomer must leave free. It spares preemptions where memory is short.
    watermark: float = 0.0
    scheduling_policy: str = "fcfs"

    # Workers (`distributed/`). The executor follows from their number: one is in this process ("uni"), more
    # are processes of their own ("mp"). With several machines this one is `node_rank`, and number 0
    # schedules. `distributed/config.py` says which of these go together.
    tensor_parallel_size: int = 1
    distributed_executor_backend: str | None = None
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int | None = None

    # Guessing tokens ahead: see `speculative/config.py` for what the dict may say.
    speculative_config: dict[str, Any] | None = None

    # The rest: which attention, and limits on what a request may ask for.
    attention_backend: str = "auto"
    # Logits that are the same bits in any batch and any chunk (CPU): one query and 16 rows at a time.
    batch_invariant: bool = False
    # Call by call: no CUDA graphs on a GPU, no compiled steps on a CPU.
    enforce_eager: bool = False
    max_logprobs: int = 20
    disable_log_stats: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        # From here on, values that are right alone and wrong together.
        if self.num_blocks is not None and self.kv_cache_memory_bytes is not None:
            raise ValueError("Give num_blocks or kv_cache_memory_bytes, not both: each sizes the KV cache.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be greater than or equal to "
                f"max_num_seqs ({self.max_num_seqs}): every running sequence needs one token per step."
            )
        if self.batch_invariant and self.attention_backend not in ("auto", "torch"):
            raise ValueError(
                f"batch_invariant=True attends by PyTorch, one query at a time: leave attention_backend at "
                f'"auto" or "torch", got "{self.attention_backend}".'
            )
        if self.preemption_mode == "swap" and self.swap_space_bytes == 0:
            raise ValueError(
                'preemption_mode="swap" needs swap_space_bytes > 0: there is nowhere to swap to.'
            )

    @classmethod
    def from_kwargs(cls, options: dict[str, Any]) -> EngineConfig:
        """Build a config from keyword arguments; a `Path` may stand where the config holds a string.

        An unknown argument is a TypeError that names it and lists the known ones, which Python's does not.
        """
        known = cls.__dataclass_fields__
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(
                f"unknown engine option {', '.join(unknown)}. Known options: {', '.join(sorted(known))}."
            )
        return cls(**{name: str(x) if isinstance(x, PathLike) else x for name, x in options.items()})
