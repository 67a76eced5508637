"""All layers of a decode step on a CPU in one call: what remains of a step when Python is taken out of it.

Python calls the kernels of this folder one by one, and each call takes 3 to 10 microseconds in which no
number is computed: arguments are checked, memory is found for the result. A layer has ten such calls, and
with 16 sequences calling a norm takes longer than the norm. One layer of SmolLM2-135M, microseconds on two
cores of an AMD EPYC (Zen 5)::

                       norm   qkv   rotate   write   o    norm   gate, up   silu   down
    the kernel         1      38    1        2       22   1      120        4      61
    the call around it 6      11    5        5       10   6      10         3      9

So here the order of the calls is compiled too. It is the order of `LlamaDecoderLayer.forward`, which is the
oracle: 30 layers become one call, each kind of weight is one array for all layers, and what lies between two
calls has the same place in memory in each layer. For a GPU, a CUDA graph does the same by recording
(`backends/cuda_graphs.py`). A step of 32 sequences, milliseconds::

                  call by call   compiled
    float32       33.4           29.9
    bfloat16      21.8           18.4

Where the time goes inside can no longer be seen from outside, so this code counts it: in the processor's
cycles, which take some 20 of them to read.

vLLM V1: `vllm/compilation/`; torch.compile writes such a program for any model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import sigutils, types
from numba.extending import intrinsic, overload

from .bfloat16_cpu import narrow_as, pack_pairs
from .compile_cpu import kept
from .matmul_cpu import matmul_cpu
from .paged_attention_cpu import SIGNATURE as ATTENTION
from .rows_cpu import rms_norm_cpu, rotary_embedding_cpu, silu_and_mul_cpu


class Weights(NamedTuple):
    """Of all L layers: the two norms (L, 2, H), and panels (L, panels, in, WIDTH) of each product, float32 or
    pairs of bfloat16 (see `matmul_cpu.py`); cos_sin (max_position, D) as in `rotary_embedding_cpu`.
    """

    norms: np.ndarray
    qkv: np.ndarray
    o: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    cos_sin: np.ndarray
    eps: np.float32


class Batch(NamedTuple):
    """Of the T tokens of a step: positions and slots (T,), and three arguments of `paged_attention_cpu`."""

    positions: np.ndarray
    slots: np.ndarray
    tokens: np.ndarray
    block_tables: np.ndarray
    seq_lens: np.ndarray


class Scratch(NamedTuple):
    """Memory for what lies between two calls, float32, one row per token::

        hidden, total, update, normed  (T, H)               gate_up  (T, 2 I)
        heads    (T, Hq + 2 Hkv, D)                         inner    (T, I)
        rotated  (T, Hq + Hkv, D)                           room     pairs of a product's input; else empty
        attended (T, Hq, D)                                 cycles   (3,): products, attention, all

    The cycles are added up from call to call, until they are set to 0.
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
    def make(cls, num_rows: int, hidden: int, heads: tuple[int, int, int], inner: int, dtype: str) -> Scratch:
        """For up to num_rows tokens. heads: Hq, Hkv, D; dtype: of the panels, "float32" or "uint32"."""
        num_heads, num_kv_heads, dim = heads
        shapes = [(hidden,)] * 4
        shapes += [(n, dim) for n in (num_heads + 2 * num_kv_heads, num_heads + num_kv_heads, num_heads)]
        shapes += [(2 * inner,), (inner,)]
        most = (max(hidden, inner, num_heads * dim) + 1) // 2
        room = np.empty(0 if dtype == "float32" else num_rows * most, dtype)
        rows = (np.empty((num_rows, *shape), np.float32) for shape in shapes)
        return cls(*rows, room, np.zeros(3, np.int64))

    def first(self, num_rows: int) -> Scratch:
        """The same memory, its first rows."""
        return Scratch(*(array[:num_rows] for array in self[:-2]), *self[-2:])


def read_cycles():
    """The processor's count of cycles, 0 where a program may not read it (ARM); in Python nanoseconds."""
    return time.perf_counter_ns()


@overload(read_cycles, inline="always")
def _cycles_compiled():
    return lambda: _read_counter()


@intrinsic
def _read_counter(typing_context: Any) -> tuple[Any, Callable[..., ir.Value]]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        if not llvmlite.binding.get_process_triple().startswith("x86_64"):
            return ir.IntType(64)(0)
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", (), kind), [])

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
    """y = x W^T, and its cycles."""
    begin = read_cycles()
    matmul_cpu(factors(x, scratch.room), panels, y)
    scratch.cycles[0] += read_cycles() - begin


@numba.njit(parallel=True)
def write_cpu(keys, values, slots, key_cache, value_cache):
    """Put keys and values (T, Hkv, D) into their slots (T,) of the caches (B, S, Hkv, D)."""
    block_size, num_heads, head_dim = key_cache.shape[1:]
    for token in numba.prange(len(slots)):  # by all threads, as most of the time is waiting for memory
        block, offset = slots[token] // block_size, slots[token] % block_size
        for head in range(num_heads):
            for d in range(head_dim):
                key_cache[block, offset, head, d] = narrow_as(keys[token, head, d], key_cache)
                value_cache[block, offset, head, d] = narrow_as(values[token, head, d], value_cache)


def _signature(kv: str, panels: str) -> Any:
    """The types of `decode_layers_cpu` for one type of K and V and one of the panels; `::1`: C-contiguous."""
    rows, heads, numbers = types.float32[:, ::1], types.float32[:, :, ::1], types.int64[::1]
    each, tables = getattr(types, panels), types.int32[:, ::1]
    weights = [heads, *[each[:, :, :, ::1]] * 4, rows, types.float32]
    batch = [numbers, numbers, numbers, tables, types.int32[::1]]
    scratch = [rows, rows, rows, rows, heads, heads, heads, rows, rows, each[::1], numbers]
    attend, _ = sigutils.normalize_signature(ATTENTION.format(kv=kv))
    return types.void(
        types.FunctionType(types.void(*attend)),
        types.NamedTuple(weights, Weights),
        types.Array(getattr(types, kv), 6, "C"),
        types.NamedTuple(batch, Batch),
        types.NamedTuple(scratch, Scratch),
    )


@kept([_signature("float32", "float32"), _signature("uint16", "uint32")])
def decode_layers_cpu(attend, weights, kv_cache, batch, scratch):
    """`scratch.hidden` and `scratch.update` (T, H) through all layers; the results are in the same places.

    As in `LlamaModel`, the next norm adds `update` to `hidden`. attend: what `compile_paged_attention_cpu`
    gives. kv_cache (L, 2, B, S, Hkv, D): float32 with panels of float32, the bits of bfloat16 with pairs.
    """
    start = read_cycles()
    hidden, total, update, normed, heads, rotated, attended, gate_up, inner, _, cycles = scratch
    num_rows, num_heads, head_dim = attended.shape
    num_rotated = rotated.shape[1]
    scale = np.float32(1 / np.sqrt(head_dim))
    for layer in range(len(weights.norms)):
        keys, values = kv_cache[layer, 0], kv_cache[layer, 1]
        rms_norm_cpu(hidden, update, weights.norms[layer, 0], weights.eps, normed, total)
        multiply(normed, weights.qkv[layer], heads.reshape(num_rows, -1), scratch)
        rotary_embedding_cpu(heads, batch.positions, weights.cos_sin, rotated)
        write_cpu(rotated[:, num_heads:], heads[:, num_rotated:], batch.slots, keys, values)
        begin, query = read_cycles(), rotated[:, :num_heads]
        attend(query, keys, values, batch.tokens, batch.block_tables, batch.seq_lens, scale, attended)
        cycles[1] += read_cycles() - begin
        multiply(attended.reshape(num_rows, -1), weights.o[layer], update, scratch)
        rms_norm_cpu(total, update, weights.norms[layer, 1], weights.eps, normed, hidden)
        multiply(normed, weights.gate_up[layer], gate_up, scratch)
        silu_and_mul_cpu(gate_up, inner)
        multiply(inner, weights.down[layer], update, scratch)
    cycles[2] += read_cycles() - start
