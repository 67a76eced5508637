"""All layers of a decode step on a CPU in one call: what is left of a step when Python is taken out of it.

The kernels of this folder are called one by one from Python, and each call costs 3 to 10 microseconds in which
no number is computed: arguments are checked, a tensor is made for the result, an object finds its method. A
layer has nine such calls, and with 16 sequences its norms, its rotation and its activation take less time
than calling them::

    one layer, 16 sequences, us      norm   qkv   rotate   write   attend   o   norm   gate, up   silu   down
    the kernel                       1      38    1        1       140      22  1      120        4      61
    the call around it               6      10    5        6       15       10  6      10         3      9

So here the order of the calls is itself compiled. It is the order of `LlamaDecoderLayer.forward`, which is its
oracle: 30 layers are one call, results lie in memory which is used again in each layer, and the weights of a
kind are one array for all layers. A CUDA graph does the same for a GPU, by recording
(`backends/cuda_graphs.py`).

What a step spends where can not be seen from outside any more, so the loop counts it: in cycles of the
processor, which are read in some 20 of them.

vLLM V1: torch.compile in `vllm/compilation/`, which writes such a program for any model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import sigutils, types
from numba.extending import intrinsic, overload

from .bfloat16_cpu import narrow_as, pack_pairs
from .matmul_cpu import matmul_cpu
from .paged_attention_cpu import SIGNATURE as ATTENTION_SIGNATURE
from .rows_cpu import rms_norm_cpu, rotary_embedding_cpu, silu_and_mul_cpu

PRODUCTS, ATTENTION, ALL = range(3)
"""Places in `Scratch.cycles`."""


class Weights(NamedTuple):
    """Of L layers: norms (L, 2, H), panels (L, panels, in, WIDTH) for each product; cos_sin (max_position, D).

    Panels are float32 or pairs of bfloat16, see `matmul_cpu.py`.
    """

    norms: np.ndarray
    qkv: np.ndarray
    o: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    cos_sin: np.ndarray
    eps: np.float32


class Batch(NamedTuple):
    """Positions and slots (T,) of the tokens, and three arguments of `paged_attention_cpu`, R being T."""

    positions: np.ndarray
    slots: np.ndarray
    tokens: np.ndarray
    block_tables: np.ndarray
    seq_lens: np.ndarray


class Scratch(NamedTuple):
    """Memory for what lies between two calls, used again in each layer: T rows each, float32.

    hidden, total, update, normed (T, H); heads (T, Hq + 2 Hkv, D), rotated (T, Hq + Hkv, D), attended
    (T, Hq, D); gate_up (T, 2 I), inner (T, I). `room` is for pairs, flat and as long as the largest input of
    a product; with float32 weights it is empty. `cycles` (3,): spent since it was set to 0.
    """

    hidden: np.ndarray
    total: np.ndarray
    update: np.ndarray
    normed: np.ndarray
    heads: np.ndarray
    rotated: np.ndarray
    attended: np.ndarray
    gate_up: np.ndarray
    inner: np.ndarray
    room: np.ndarray
    cycles: np.ndarray

    @classmethod
    def make(cls, num_rows: int, hidden: int, heads: tuple[int, int, int], inner: int, dtype: str) -> "Scratch":
        """For up to num_rows rows; heads: (Hq, Hkv, D); dtype of the panels: "float32" or "uint32"."""
        num_heads, num_kv_heads, head_dim = heads
        shapes = [(hidden,)] * 4 + [
            (num_heads + 2 * num_kv_heads, head_dim),
            (num_heads + num_kv_heads, head_dim),
            (num_heads, head_dim),
            (2 * inner,),
            (inner,),
        ]
        most = max(hidden, inner, num_heads * head_dim)
        room = np.empty(0 if dtype == "float32" else num_rows * (most + 1) // 2, dtype)
        return cls(*(np.empty((num_rows, *shape), np.float32) for shape in shapes), room, np.zeros(3, np.int64))

    def first(self, num_rows: int) -> "Scratch":
        """The same memory for fewer rows."""
        return Scratch(*(array[:num_rows] for array in self[:-2]), *self[-2:])


@intrinsic
def _read_cycles(typing_context: Any) -> tuple[Any, Callable[..., ir.Value]]:
    """The processor's count of cycles; 0 where a program may not read it (ARM)."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        counter = ir.FunctionType(ir.IntType(64), [])
        if not llvmlite.binding.get_process_triple().startswith("x86_64"):
            return ir.IntType(64)(0)
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", (), counter), [])

    return types.int64(), generate


@numba.njit
def _pairs(x, room):
    columns = (x.shape[1] + 1) // 2
    pairs = room[: len(x) * columns].reshape(len(x), columns)
    pack_pairs(x, pairs)
    return pairs


def factors(x, room):
    """x (T, in) float32 as the product wants it, by the type of `room`: x itself, or pairs written there."""
    return x if room.dtype == np.float32 else _pairs(x, room)


@overload(factors, inline="always")
def _factors_compiled(x, room):
    return (lambda x, room: x) if room.dtype == types.float32 else (lambda x, room: _pairs(x, room))


@numba.njit
def multiply(x, panels, y, scratch):
    """y = x W^T."""
    start = _read_cycles()
    matmul_cpu(factors(x, scratch.room), panels, y)
    scratch.cycles[PRODUCTS] += _read_cycles() - start


@numba.njit(parallel=True)
def write_cpu(keys, values, slots, key_cache, value_cache):
    """Put keys and values (T, Hkv, D) into their slots (T,) of the caches (B, S, Hkv, D)."""
    block_size, num_heads, head_dim = key_cache.shape[1:]
    for token in numba.prange(len(slots)):  # by all threads: most of the time is waiting for memory
        block, offset = slots[token] // block_size, slots[token] % block_size
        for head in range(num_heads):
            for d in range(head_dim):
                key_cache[block, offset, head, d] = narrow_as(keys[token, head, d], key_cache)
                value_cache[block, offset, head, d] = narrow_as(values[token, head, d], value_cache)


def _signature(kv: str, panels: str) -> str:
    """Of `decode_layers_cpu`; `::1` means C-contiguous."""
    arguments, _ = sigutils.normalize_signature(ATTENTION_SIGNATURE.format(kv=kv))
    two, three = types.float32[:, ::1], types.float32[:, :, ::1]
    weight = getattr(types, panels)[:, :, :, ::1]
    weights = types.NamedTuple(
        [types.float32[:, :, ::1], weight, weight, weight, weight, two, types.float32], Weights
    )
    batch = types.NamedTuple(
        [types.int64[::1], types.int64[::1], types.int64[::1], types.int32[:, ::1], types.int32[::1]], Batch
    )
    scratch = types.NamedTuple(
        [two] * 4 + [three] * 3 + [two] * 2 + [getattr(types, panels)[::1], types.int64[::1]], Scratch
    )
    cache = types.Array(getattr(types, kv), 6, "C")
    return types.void(types.FunctionType(types.void(*arguments)), weights, cache, batch, scratch)


@numba.njit(
    [_signature("float32", "float32"), _signature("uint16", "uint32")],
    nogil=True, cache=True, error_model="numpy",
)  # fmt: skip
def decode_layers_cpu(attend, weights, kv_cache, batch, scratch):
    """Hidden states through all layers; `scratch.hidden` and `scratch.update` are the input and the output.

    attend: `compile_paged_attention_cpu(...)`; kv_cache (L, 2, B, S, Hkv, D), float32 or the bits of bfloat16,
    with weights in the same type. As in `LlamaModel`, `update` is to be added to `hidden` by the next norm.
    """
    begin = _read_cycles()
    hidden, total, update, normed, heads, rotated, attended, gate_up, inner, _, cycles = scratch
    num_rows, num_heads, head_dim = attended.shape
    num_kv_heads = kv_cache.shape[4]
    scale = np.float32(1 / np.sqrt(head_dim))
    for layer in range(len(weights.norms)):
        cache = kv_cache[layer, 0], kv_cache[layer, 1]
        rms_norm_cpu(hidden, update, weights.norms[layer, 0], weights.eps, normed, total)
        multiply(normed, weights.qkv[layer], heads.reshape(num_rows, -1), scratch)
        rotary_embedding_cpu(heads, batch.positions, weights.cos_sin, rotated)
        write_cpu(rotated[:, num_heads:], heads[:, num_heads + num_kv_heads :], batch.slots, cache[0], cache[1])
        start = _read_cycles()
        attend(rotated[:, :num_heads], cache[0], cache[1], batch.tokens, batch.block_tables, batch.seq_lens, scale, attended)
        cycles[ATTENTION] += _read_cycles() - start
        multiply(attended.reshape(num_rows, -1), weights.o[layer], update, scratch)
        rms_norm_cpu(total, update, weights.norms[layer, 1], weights.eps, normed, hidden)
        multiply(normed, weights.gate_up[layer], gate_up, scratch)
        silu_and_mul_cpu(gate_up, inner)
        multiply(inner, weights.down[layer], update, scratch)
    cycles[ALL] += _read_cycles() - begin
